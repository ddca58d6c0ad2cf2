//! Pages that the host lost, touched in every way there is: from user mode, by system calls, as page cache, by execve(), by
//! another process. For each site a process makes a page and touches it once it is lost; then the page comes back, and it
//! is touched again. Nothing may hang, and nobody else may notice.
//!
//! Options: `loss` (none, no_access, truncated, uffd_poison, hw_poison, dead_pager), `when` (before; waiting: the page
//! is missing at first, and lost when the process waits for it), `sites` (names or groups, separated by commas, with
//! a minus those that are not; all), `limit_ms` (10000): what takes longer is a hang. Reports under `sites`, by name: `is`, in words, what it came
//! to, and again when the page was back; and the parts of it. A task that computes shows that others go on (`useful_share`). `kinds`: how many
//! different things it came to.

mod cache;
mod calls;
mod child;
mod exec;
mod futex;
mod memory;
mod remote;
mod shared;
mod site;
mod user;
mod watch;
mod way;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Map, json};
use ve_apf_testdev::PolicyArgs;

use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::tally::Tally;
use site::Make;
use watch::Watch;
pub(super) use way::Way;

const GROUPS: [(&str, &[(&str, Make)]); 9] = [
    ("user", &user::SITES),
    ("calls", &calls::SITES),
    ("futex", &futex::SITES),
    ("cache", &cache::SITES),
    ("plain", &cache::PLAIN),
    ("cut", &cache::CUT),
    ("exec", &exec::SITES),
    ("remote", &remote::SITES),
    ("memory", &memory::SITES),
];

/// `lost_page`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let way = Way::named(options.text("loss", "no_access"))?;
    let sites = named(options.text("sites", "all"))?;
    let waiting = match options.text("when", "before") {
        "before" => false,
        "waiting" => true,
        other => bail!("veapf.when={other}: must be before or waiting"),
    };
    if waiting && way == Way::DeadPager {
        bail!("veapf.when=waiting: with a dead pager there is nothing else");
    }
    let limit = Duration::from_millis(options.number("limit_ms", 10_000)?);
    let watch = Watch { device, way, waiting, limit };
    device.set_policy(&[], PolicyArgs::fixed(1000))?;
    let section = Section::begin(device, options, name)?;
    let mut found = Map::new();
    let (mut tally, mut stuck) = (Tally::default(), 0);
    for (name, make) in sites {
        let one = watch::site(&watch, make)?;
        println!("l2-init: {name}: {}", one.value["is"].as_str().unwrap_or(""));
        stuck += u64::from(one.stuck);
        tally.wrong_bytes += one.wrong_bytes;
        found.insert(name.to_owned(), one.value);
    }
    let measured = section.end()?;
    let kinds: BTreeSet<&str> = found.values().filter_map(|one| one["is"].as_str()).collect();
    let more = json!({
        "loss": options.text("loss", "no_access"), "stuck": stuck, "kinds": kinds.len(), "count": found.len(),
        "sites": found,
    });
    measured.report(device, name, 1, 0, &tally, more);
    Ok(())
}

/// The sites that are asked for, in the table's order.
fn named(list: &str) -> Result<Vec<(&'static str, Make)>> {
    let sites = GROUPS.iter().flat_map(|(group, sites)| sites.iter().map(|site| (*group, *site)));
    let is = |(group, (name, _)): &(&str, (&str, Make)), word: &str| {
        [*name, *group, "all"].contains(&word)
    };
    for word in list.split(',').map(|word| word.trim_start_matches('-')) {
        if !sites.clone().any(|site| is(&site, word)) {
            bail!("veapf.sites={word}: no such site");
        }
    }
    let (without, with): (Vec<&str>, Vec<&str>) =
        list.split(',').partition(|word| word.starts_with('-'));
    let wanted = |site: &(&'static str, (&'static str, Make))| {
        with.iter().any(|word| is(site, word)) && !without.iter().any(|word| is(site, &word[1..]))
    };
    Ok(sites.filter(wanted).map(|(_, site)| site).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() -> Result<()> {
        let all = named("all")?;
        assert_eq!(all.len(), GROUPS.iter().map(|(_, sites)| sites.len()).sum::<usize>());
        assert_eq!(named("user,write")?.len(), user::SITES.len() + 1);
        assert_eq!(named("all,-cut,-read")?.len(), all.len() - cache::CUT.len() - 1);
        let mut names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len(), "two sites of one name");
        assert!(named("user,nonsense").is_err() && named("all,-nonsense").is_err());
        Ok(())
    }
}
