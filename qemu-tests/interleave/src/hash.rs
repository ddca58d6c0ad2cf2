//! The hash that names a state. 64 bits of a multiply-and-fold hash: with a million states the
//! chance that two share a name is below 1 in 10^7.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A hasher without a key: runs must repeat exactly.
pub struct Fold(u64);

const SEED: u64 = 0x243f_6a88_85a3_08d3;
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Default for Fold {
    fn default() -> Self {
        Self(SEED)
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        let mixed = u128::from(self.0.rotate_left(23) ^ value) * u128::from(FACTOR);
        self.0 = (mixed as u64) ^ ((mixed >> 64) as u64) ^ SEED;
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

/// The hash of a value.
pub fn of<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = Fold::default();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A set of hashes, which are not hashed again.
pub type Seen = HashSet<u64, BuildHasherDefault<Identity>>;

/// Takes a hash for what it is.
#[derive(Default)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A value that a thread owns while it uses it; then its hash is the old one, and what the thread
/// did with it follows from the thread's history.
#[derive(Clone, Debug)]
pub struct Owned<T> {
    value: Option<T>,
    /// Of the value when it was last here.
    pub hash: u64,
}

impl<T: Hash> Owned<T> {
    /// Puts a value there.
    pub fn new(value: T) -> Self {
        Self { hash: of(&value), value: Some(value) }
    }

    /// Takes it away.
    pub fn take(&mut self) -> T {
        self.value.take().expect("one owner at a time")
    }

    /// Looks at it.
    pub fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }
}

impl<T> Hash for Owned<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}
