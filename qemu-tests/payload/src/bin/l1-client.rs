//! Boots L2 in Debian's QEMU: see `USAGE`. Prints one `client` record. Exit code 0, 1 (failed), 2 (usage).

use std::process::ExitCode;

use anyhow::{Context, Result};
use ve_apf_payload::client::migrations::How;
use ve_apf_payload::client::{
    dax, migrations, postcopy, pressed, refused, resets, snapshots, swap,
};

const USAGE: &str = "usage: l1-client CLIENT [L2-COMMAND-LINE], where CLIENT is one of
  dax, postcopy, refused,
  swap DEVICE, pressed DEVICE, snapshots DEVICE ROUNDS, resets DEVICE ROUNDS, migrations DEVICE ROUNDS precopy|postcopy
(DEVICE: L1 swaps to it; what is on it is lost)";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("l1-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// False if `words` name no client.
fn run(words: &[&str]) -> Result<bool> {
    let [client, rest @ ..] = words else { return Ok(false) };
    let arguments = match *client {
        "dax" | "postcopy" | "refused" => 0,
        "swap" | "pressed" => 1,
        "snapshots" | "resets" => 2,
        "migrations" => 3,
        _ => return Ok(false),
    };
    let Some((arguments, append)) = rest.split_at_checked(arguments) else { return Ok(false) };
    let append = match append {
        [] => "",
        [append] => append,
        _ => return Ok(false),
    };
    let number = |text: &str| text.parse().with_context(|| format!("{text}: not a number"));
    match (*client, arguments) {
        ("dax", []) => dax::run(append)?,
        ("postcopy", []) => postcopy::run(append)?,
        ("refused", []) => refused::run(append)?,
        ("swap", [device]) => swap::run(device, append)?,
        ("pressed", [device]) => pressed::run(device, append)?,
        ("snapshots", [device, rounds]) => snapshots::run(device, number(rounds)?, append)?,
        ("resets", [device, rounds]) => resets::run(device, number(rounds)?, append)?,
        ("migrations", [device, rounds, how]) => {
            migrations::run(device, How::named(how)?, number(rounds)?, append)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}
