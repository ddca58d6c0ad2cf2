//! Options of a workload: the `veapf.KEY=VALUE` words of the kernel command line.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use ve_apf_testdev::{Order, PolicyArgs};

/// Keys and values.
#[derive(Debug, Default)]
pub struct Options {
    values: BTreeMap<String, String>,
}

impl Options {
    /// Of this boot.
    pub fn from_kernel() -> Options {
        Options::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    /// Of this text.
    pub fn parse(text: &str) -> Options {
        let pairs =
            text.split_whitespace().filter_map(|word| word.strip_prefix("veapf.")?.split_once('='));
        Options { values: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect() }
    }

    /// `NAME[:KEY=VALUE...]` of `veapf.run`: the name, and the options with these put in.
    pub fn for_run<'a>(&self, run: &'a str) -> (&'a str, Options) {
        let mut words = run.split(':');
        let name = words.next().unwrap_or_default();
        let mut values = self.values.clone();
        let own = words.filter_map(|word| word.split_once('='));
        values.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        (name, Options { values })
    }

    /// A text.
    pub fn text<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.values.get(key).map_or(default, String::as_str)
    }

    /// A number.
    pub fn number(&self, key: &str, default: u64) -> Result<u64> {
        match self.values.get(key) {
            None => Ok(default),
            Some(text) => text.parse().with_context(|| format!("veapf.{key}={text}: not a number")),
        }
    }

    /// A number that counts things in memory.
    pub fn count(&self, key: &str, default: usize) -> Result<usize> {
        Ok(usize::try_from(self.number(key, default as u64)?)?)
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str, default: &str) -> Result<Vec<usize>> {
        let text = self.values.get(key).map_or(default, String::as_str);
        let words = text.split(',').filter(|word| !word.is_empty());
        let number = |word: &str| {
            word.parse().with_context(|| format!("veapf.{key}={text}: {word} is no number"))
        };
        words.map(number).collect()
    }

    /// On or off.
    pub fn flag(&self, key: &str) -> bool {
        self.text(key, "0") == "1"
    }

    /// The pager's policy: `latency=US` or `latency=MIN-MAX`, `order=fifo|random|lifo`, `burst=N`, `hold=US`.
    pub fn policy(&self) -> Result<PolicyArgs> {
        let latency = self.text("latency", "20000");
        let (min, max) = latency.split_once('-').unwrap_or((latency, latency));
        let us =
            |text: &str| text.parse::<u32>().with_context(|| format!("veapf.latency={latency}"));
        let (min_us, max_us) = (us(min)?, us(max)?);
        let order = match self.text("order", "fifo") {
            "fifo" => Order::Fifo,
            "random" => Order::Random,
            "lifo" => Order::Lifo,
            other => bail!("veapf.order={other}: must be fifo, random or lifo"),
        };
        if min_us > max_us {
            bail!("veapf.latency={latency}: the shortest is longer than the longest");
        }
        let burst = u32::try_from(self.number("burst", 0)?)?;
        let hold_us = u32::try_from(self.number("hold", 500_000)?)?;
        Ok(PolicyArgs { min_us, max_us, order, never: self.flag("never"), burst, hold_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() -> Result<()> {
        let options = Options::parse(
            "console=ttyS0 veapf.run=stress veapf.latency=10-200 veapf.order=lifo veapf.tasks=3",
        );
        assert_eq!(options.text("run", ""), "stress");
        assert_eq!(options.count("tasks", 8)?, 3);
        assert_eq!(options.number("pages", 64)?, 64);
        let policy = options.policy()?;
        assert_eq!((policy.min_us, policy.max_us, policy.order), (10, 200, Order::Lifo));
        Ok(())
    }

    #[test]
    fn a_run_may_have_options_of_its_own() -> Result<()> {
        let options = Options::parse("veapf.tasks=3 veapf.pages=4");
        let (name, own) = options.for_run("burst:tasks=16:order=lifo");
        assert_eq!((name, own.count("tasks", 0)?, own.count("pages", 0)?), ("burst", 16, 4));
        assert_eq!((own.text("order", ""), options.count("tasks", 0)?), ("lifo", 3));
        assert_eq!(options.for_run("idle").0, "idle");
        Ok(())
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["veapf.latency=x", "veapf.latency=9-1", "veapf.order=up", "veapf.burst=many"] {
            assert!(Options::parse(text).policy().is_err(), "{text}");
        }
        assert!(Options::parse("veapf.tasks=-1").count("tasks", 1).is_err());
    }
}
