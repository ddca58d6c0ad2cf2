//! The grammar of expectations, by recursive descent.
//!
//! comparison := sum op sum; sum := product (('+'|'-') product)*; product := atom (('*'|'/') atom)*;
//! atom := number | "text" | true | false | null | path | name '(' path ')' | '(' sum ')'

/// What is compared.
#[derive(Debug)]
pub(super) enum Expr {
    Number(f64),
    Text(String),
    Bool(bool),
    Null,
    Path(Vec<String>),
    Call(String, Vec<String>),
    Binary(char, Box<Expr>, Box<Expr>),
}

/// The comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Contains,
}

/// Two characters before one.
const OPS: &[(&str, Op)] = &[
    ("==", Op::Eq),
    ("!=", Op::Ne),
    ("<=", Op::Le),
    (">=", Op::Ge),
    ("<", Op::Lt),
    (">", Op::Gt),
    ("~", Op::Contains),
];

struct Parser<'a> {
    rest: &'a str,
}

/// Parses a whole comparison.
pub(super) fn comparison(text: &str) -> Result<(Expr, Op, Expr), String> {
    let mut parser = Parser { rest: text };
    let left = parser.sum()?;
    parser.skip();
    let (mark, op) = OPS
        .iter()
        .find(|(mark, _)| parser.rest.starts_with(mark))
        .ok_or_else(|| format!("expected a comparison at '{}'", parser.rest))?;
    parser.rest = &parser.rest[mark.len()..];
    let right = parser.sum()?;
    parser.skip();
    if parser.rest.is_empty() {
        Ok((left, *op, right))
    } else {
        Err(format!("unexpected '{}'", parser.rest))
    }
}

/// Parses a whole sum.
pub(super) fn expression(text: &str) -> Result<Expr, String> {
    let mut parser = Parser { rest: text };
    let sum = parser.sum()?;
    parser.skip();
    if parser.rest.is_empty() { Ok(sum) } else { Err(format!("unexpected '{}'", parser.rest)) }
}

impl Parser<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, c: char) -> bool {
        self.skip();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Result<Expr, String> {
        let mut left = self.product()?;
        loop {
            let op = if self.eat('+') {
                '+'
            } else if self.eat('-') {
                '-'
            } else {
                return Ok(left);
            };
            left = Expr::Binary(op, Box::new(left), Box::new(self.product()?));
        }
    }

    fn product(&mut self) -> Result<Expr, String> {
        let mut left = self.atom()?;
        loop {
            let op = if self.eat('*') {
                '*'
            } else if self.eat('/') {
                '/'
            } else {
                return Ok(left);
            };
            left = Expr::Binary(op, Box::new(left), Box::new(self.atom()?));
        }
    }

    fn atom(&mut self) -> Result<Expr, String> {
        if self.eat('(') {
            let inner = self.sum()?;
            return if self.eat(')') { Ok(inner) } else { Err("expected ')'".into()) };
        }
        if self.eat('"') {
            let (text, rest) = self.rest.split_once('"').ok_or("a text without its end")?;
            self.rest = rest;
            return Ok(Expr::Text(text.to_owned()));
        }
        if self.eat('-') {
            return Ok(Expr::Binary('-', Box::new(Expr::Number(0.0)), Box::new(self.atom()?)));
        }
        self.skip();
        if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            let word = self.word(|c| c.is_ascii_digit() || c == '.' || c == '_');
            return word
                .replace('_', "")
                .parse()
                .map(Expr::Number)
                .map_err(|_| format!("no number: {word}"));
        }
        let path = self.path()?;
        if self.eat('(') {
            let inner = self.path()?;
            return if self.eat(')') {
                Ok(Expr::Call(path.join("."), inner))
            } else {
                Err("expected ')'".into())
            };
        }
        Ok(match path.join(".").as_str() {
            "true" => Expr::Bool(true),
            "false" => Expr::Bool(false),
            "null" => Expr::Null,
            _ => Expr::Path(path),
        })
    }

    fn path(&mut self) -> Result<Vec<String>, String> {
        self.skip();
        let word = self.word(|c| c.is_alphanumeric() || c == '_' || c == '.');
        if word.is_empty() || word.split('.').any(str::is_empty) {
            return Err(format!("expected a field at '{word}{}'", self.rest));
        }
        Ok(word.split('.').map(str::to_owned).collect())
    }

    fn word(&mut self, part: impl Fn(char) -> bool) -> String {
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }
}
