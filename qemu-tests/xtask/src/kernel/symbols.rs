//! A kernel's System.map: a line each of address, kind and name.

use std::path::{Path, PathBuf};

/// It lies beside the image.
pub(crate) fn path(bzimage: &Path) -> PathBuf {
    bzimage.with_file_name("System.map")
}

/// Where `name` is.
pub(crate) fn address(map: &str, name: &str) -> Option<u64> {
    all(map).find(|(_, _, symbol)| *symbol == name).map(|(at, ..)| at)
}

/// The last symbol of the kernel's text that is not behind `address`, as `name+0x12`.
pub(crate) fn closest(map: &str, address: u64) -> Option<String> {
    /// A function is shorter than this; an address further on is nobody's.
    const FAR: u64 = 1 << 20;
    let text = all(map).filter(|(at, kind, _)| *at <= address && "tTwW".contains(kind));
    let (at, _, name) = text.max_by_key(|(at, ..)| *at)?;
    (address - at < FAR).then(|| format!("{name}+{:#x}", address - at))
}

fn all(map: &str) -> impl Iterator<Item = (u64, &str, &str)> {
    map.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let at = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((at, words.next()?, words.next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str =
        "ffffffff81000010 T a\nffffffff81000020 t __schedule\nffffffff82000000 D data\n";

    #[test]
    fn a_symbol_has_an_address() {
        assert_eq!(address(MAP, "__schedule"), Some(0xffff_ffff_8100_0020));
        assert_eq!(address(MAP, "schedule"), None);
    }

    #[test]
    fn an_address_is_in_a_function() {
        assert_eq!(closest(MAP, 0xffff_ffff_8100_0012).unwrap(), "a+0x2");
        assert_eq!(closest(MAP, 0xffff_ffff_8100_0020).unwrap(), "__schedule+0x0");
        assert_eq!(closest(MAP, 0x40_1000), None);
        assert_eq!(closest(MAP, 0xffff_ffff_8200_0000), None);
    }
}
