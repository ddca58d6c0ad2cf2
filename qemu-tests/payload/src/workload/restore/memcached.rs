//! Debian's memcached, and who asks it: the text protocol, on a socket in `/tmp`.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ve_apf_testdev::{pattern_base, pattern_word};

const PROGRAM: &str = "/usr/bin/memcached";
const SOCKET: &str = "/tmp/memcached";
/// As root it would look for a user to become.
const NOBODY: u32 = 65534;
/// How long it may take to listen.
const START: Duration = Duration::from_secs(30);

/// Bytes of a value: with its key and its header, an item is a little more than a page.
const VALUE: usize = 4000;

/// The server, running.
pub(super) struct Server {
    child: Child,
}

impl Server {
    /// Starts it with so many threads that answer.
    pub(super) fn start(threads: usize, mem_mib: usize) -> Result<Server> {
        let mut command = Command::new(PROGRAM);
        command
            .args(["-s", SOCKET, "-t", &threads.to_string(), "-m", &mem_mib.to_string()])
            .uid(NOBODY)
            .gid(NOBODY)
            .stdin(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {PROGRAM}"))?;
        Ok(Server { child })
    }

    /// One who asks, as soon as it listens.
    pub(super) fn connect(&mut self) -> Result<Client> {
        let began = Instant::now();
        loop {
            match UnixStream::connect(SOCKET) {
                Ok(stream) => return Client::new(stream),
                Err(error) if began.elapsed() > START => {
                    return Err(error).context("memcached does not listen");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("memcached ended: {status}");
            }
        }
    }

    /// Ends it. It must not have ended by itself.
    pub(super) fn stop(mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "memcached ended: {ended:?}");
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// A connection.
pub(super) struct Client {
    stream: BufReader<UnixStream>,
    line: String,
    value: Vec<u8>,
}

impl Client {
    fn new(stream: UnixStream) -> Result<Client> {
        Ok(Client { stream: BufReader::new(stream), line: String::new(), value: vec![0; VALUE] })
    }

    /// Stores the values of these keys.
    pub(super) fn store(&mut self, keys: std::ops::Range<u64>) -> Result<()> {
        let mut out = BufWriter::new(self.stream.get_ref());
        for key in keys {
            write!(out, "set k{key} 0 0 {VALUE} noreply\r\n")?;
            out.write_all(&value_of(key))?;
            out.write_all(b"\r\n")?;
        }
        // It answers this after all that was before.
        out.write_all(b"version\r\n")?;
        out.flush()?;
        drop(out);
        let line = self.read_line()?;
        ensure!(line.starts_with("VERSION "), "memcached says {line:?}");
        Ok(())
    }

    /// Asks for a key; returns how many bytes of the answer are wrong.
    pub(super) fn ask(&mut self, key: u64) -> io::Result<u64> {
        self.stream.get_ref().write_all(format!("get k{key}\r\n").as_bytes())?;
        if self.read_line()? != format!("VALUE k{key} 0 {VALUE}") {
            // "END": it does not know the key.
            return Ok(VALUE as u64);
        }
        self.stream.read_exact(&mut self.value)?;
        let wrong = self.value.iter().zip(value_of(key)).filter(|(is, ought)| **is != *ought);
        let wrong = wrong.count() as u64;
        let rest = [self.read_line()?.is_empty(), self.read_line()? == "END"];
        Ok(if rest == [true, true] { wrong } else { VALUE as u64 })
    }

    /// Without its end.
    fn read_line(&mut self) -> io::Result<&str> {
        self.line.clear();
        if self.stream.read_line(&mut self.line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.line.trim_end())
    }
}

fn value_of(key: u64) -> Vec<u8> {
    let base = pattern_base(key, 0);
    (0..VALUE / 8).flat_map(|word| pattern_word(base, word).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(answer: &'static [u8]) -> Result<(Client, std::thread::JoinHandle<Vec<u8>>)> {
        let (ours, mut theirs) = UnixStream::pair()?;
        let server = std::thread::spawn(move || {
            let mut asked = vec![0; 8];
            let _ = theirs.read_exact(&mut asked).and_then(|()| theirs.write_all(answer));
            asked
        });
        Ok((Client::new(ours)?, server))
    }

    #[test]
    fn an_answer_without_the_value_is_wrong() -> Result<()> {
        for answer in [&b"END\r\n"[..], b"ERROR\r\n", b"VALUE k77 0 10\r\n"] {
            let (mut client, server) = talk(answer)?;
            assert_eq!(client.ask(123)?, VALUE as u64);
            assert_eq!(server.join().ok().as_deref(), Some(&b"get k123"[..]));
        }
        let (mut client, _server) = talk(b"")?;
        assert!(client.ask(123).is_err());
        Ok(())
    }

    #[test]
    fn wrong_bytes_are_counted() -> Result<()> {
        let mut answer = b"VALUE k123 0 4000\r\n".to_vec();
        let mut value = value_of(123);
        value[7] ^= 1;
        answer.extend(value);
        answer.extend(b"\r\nEND\r\n");
        let (mut client, _server) = talk(answer.leak())?;
        assert_eq!(client.ask(123)?, 1);
        Ok(())
    }
}
