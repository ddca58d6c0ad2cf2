//! The thread that the pager runs in: it can die, and another can take over.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};

use super::Pager;
use crate::counters::lock;
use crate::sys;

/// A pager, and its thread if there is one.
pub struct PagerThread {
    pager: Arc<Pager>,
    pin: bool,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl PagerThread {
    /// With no thread yet; `pin` pins it to [`sys::REST_CPU`].
    pub fn new(pager: Arc<Pager>, pin: bool) -> PagerThread {
        PagerThread { pager, pin, handle: Mutex::new(None) }
    }

    /// The pager.
    pub fn pager(&self) -> &Arc<Pager> {
        &self.pager
    }

    /// Starts the thread. One that runs stays.
    pub fn start(&self) -> Result<()> {
        let mut handle = lock(&self.handle);
        if handle.is_some() {
            return Ok(());
        }
        let (pager, pin) = (self.pager.clone(), self.pin);
        let body = move || {
            if pin {
                if let Err(error) = sys::pin_to(sys::REST_CPU) {
                    eprintln!("ve-apf-vmm: cannot pin the pager: {error}");
                }
            }
            if let Err(error) = pager.run() {
                // Without a pager the guest hangs, so say why now.
                eprintln!("ve-apf-vmm: pager: {error:#}");
                std::process::exit(1);
            }
        };
        let name = Builder::new().name("pager".into());
        *handle = Some(name.spawn(body).context("cannot start the pager")?);
        Ok(())
    }

    /// Ends the thread; returns when it is gone. Nobody answers requests then, but nothing is closed.
    pub fn stop(&self) -> io::Result<()> {
        let Some(handle) = lock(&self.handle).take() else { return Ok(()) };
        self.pager.stop.write(1)?;
        handle.join().map_err(|_| io::Error::other("the pager panicked"))
    }
}
