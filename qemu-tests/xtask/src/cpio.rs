//! A "newc" cpio archive, the format of an initramfs. Same content, same bytes.

use std::collections::BTreeMap;

/// What an archive member is.
enum Node {
    Dir,
    File { mode: u32, bytes: Vec<u8> },
    Char { major: u32, minor: u32 },
}

/// Members by path, written in the order of their names.
#[derive(Default)]
pub(crate) struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// An archive with what a kernel needs to start an init.
    pub(crate) fn new() -> Self {
        let mut archive = Self::default();
        for dir in ["dev", "proc", "sys", "tmp", "run"] {
            archive.nodes.insert(dir.into(), Node::Dir);
        }
        archive.nodes.insert("dev/console".into(), Node::Char { major: 5, minor: 1 });
        archive
    }

    /// Adds a regular file; its directories come by themselves.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.insert(path, Node::File { mode, bytes });
    }

    fn insert(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        for (i, _) in path.match_indices('/') {
            self.nodes.entry(path[..i].to_owned()).or_insert(Node::Dir);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// The archive.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, (path, node)) in self.nodes.iter().enumerate() {
            let inode = i as u64 + 1;
            match node {
                Node::Dir => member(&mut out, inode, path, 0o040_755, (0, 0), &[]),
                Node::File { mode, bytes } => {
                    member(&mut out, inode, path, 0o100_000 | mode, (0, 0), bytes)
                }
                Node::Char { major, minor } => {
                    member(&mut out, inode, path, 0o020_600, (*major, *minor), &[])
                }
            }
        }
        member(&mut out, 0, "TRAILER!!!", 0, (0, 0), &[]);
        out
    }
}

/// Documentation/driver-api/early-userspace/buffer-format.rst in the kernel tree.
fn member(out: &mut Vec<u8>, inode: u64, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let fields = [
        inode,
        u64::from(mode),
        0, // uid
        0, // gid
        links,
        0, // mtime
        bytes.len() as u64,
        0, // major and minor of the file system
        0,
        u64::from(device.0),
        u64::from(device.1),
        path.len() as u64 + 1,
        0, // checksum, unused in this variant
    ];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08X}").bytes());
    }
    out.extend(path.bytes());
    out.push(0);
    pad(out);
    out.extend(bytes);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", 0o644, b"hello".to_vec());
        let text = String::from_utf8(archive.bytes()).unwrap();
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/c"));
        assert!(text.contains("hello") && text.ends_with("TRAILER!!!\0\0\0\0"));
    }

    #[test]
    fn cpio_reads_it_where_there_is_a_cpio() {
        let mut archive = Archive::new();
        archive.file("x/init", 0o755, b"12345".to_vec());
        let child = Command::new("cpio")
            .arg("-tv")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else { return };
        child.stdin.take().unwrap().write_all(&archive.bytes()).unwrap();
        let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(out.contains("-rwxr-xr-x") && out.contains("x/init"), "{out}");
    }
}
