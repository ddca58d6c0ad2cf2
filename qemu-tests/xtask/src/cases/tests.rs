//! Tests of the case table.

use super::*;

fn read(text: &str) -> Result<Suite> {
    let mut all = Suite { boots: BTreeMap::new(), cases: Vec::new() };
    parse(text, "test", &mut all)?;
    Ok(all)
}

const HEAD: &str = "suite = \"test\"\n[boot.main]\n";

#[test]
fn an_entry_becomes_a_case_per_mode() {
    let text = format!(
        "{HEAD}[[case]]\nname = \"a\"\nboot = \"main\"\nmodes = [\"blocking\", \"ve-apf\"]\nworkload = \"user_touch\"\n\
             timeout_s = 60\nparams = {{ tasks = 8, order = \"random\" }}\nexpect = [\"wrong_bytes == 0\"]\n\
             expect_in.ve-apf = [\"parked > 0\"]\n"
    );
    let suite = read(&text).unwrap();
    let names: Vec<&str> = suite.cases.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["a@blocking", "a@ve-apf"]);
    let argv = suite.cases[0].step.argv.join(" ");
    assert!(
        argv.contains("no-ve-apf no-kvmapf veapf.run=user_touch veapf.order=random veapf.tasks=8"),
        "{argv}"
    );
    assert_eq!(suite.cases[0].expect.len() + 1, suite.cases[1].expect.len());
}

#[test]
fn a_mode_may_have_a_part_of_the_pages() {
    let case = |of: &str| {
        let text = format!(
            "{HEAD}[[case]]\nname = \"a\"\nboot = \"main\"\nmodes = [\"blocking\", \"ve-apf\"]\ntimeout_s = 6\n\
             workload = [\"user_touch:pages=64\", \"execve:tasks=4:pages=8:compute=0\"]\n{of}\n"
        );
        read(&text).map_err(|error| format!("{error:#}"))
    };
    let suite = case("one_page_of.blocking = 4").unwrap();
    let argv = |i: usize| suite.cases[i].step.argv.join(" ");
    assert!(
        argv(0).contains("=user_touch:pages=16+execve:tasks=4:pages=2:compute=0"),
        "{}",
        argv(0)
    );
    assert!(
        argv(1).contains("=user_touch:pages=64+execve:tasks=4:pages=8:compute=0"),
        "{}",
        argv(1)
    );
    for (of, says) in [
        (
            "one_page_of.blocking = 16",
            "one_page_of.blocking: execve:tasks=4:pages=8:compute=0: its pages",
        ),
        ("one_page_of.blocking = 0", "one_page_of.blocking: 0 makes"),
        ("one_page_of.kvm-apf = 4", "one_page_of names the mode kvm-apf"),
        ("expect_in.hardware = []", "expect_in names the mode hardware"),
    ] {
        let error = case(of).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_workload_is_a_run_or_several() {
    for (keys, says) in [
        ("workload = []", "none of them empty"),
        ("workload = \"\"", "none of them empty"),
        ("workload = [\"info\", \"\"]", "none of them empty"),
        ("workload = \"info+info\"", "with a +"),
        ("workload = \"user_touch\"\none_page_of.ve-apf = 2", "how many pages"),
        ("argv = [\"/bin/true\"]\none_page_of.ve-apf = 2", "for a workload"),
    ] {
        let text =
            format!("{HEAD}[[case]]\nname = \"a\"\nboot = \"main\"\ntimeout_s = 6\n{keys}\n");
        let error = format!("{:#}", read(&text).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn what_would_be_cut_off_or_cannot_be_is_refused() {
    let case = |more: &str| {
        format!("{HEAD}[[case]]\nname = \"a\"\nboot = \"main\"\ntimeout_s = 6\n{more}\n")
    };
    let long = format!("workload = \"{}\"", "x".repeat(2000));
    let both = "workload = \"info\"\nkernel_inside = true\nserver = true".to_owned();
    for (text, says) in [(case(&long), "longer than"), (case(&both), "not both")] {
        let error = format!("{:#}", read(&text).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
    for (boot, says) in [
        ("lane = \"vmx\"\nicount = 2", "lane vmx"),
        ("icount = 11", "0 to 10"),
        ("mips = 200", "lane vmx"),
        ("lane = \"vmx\"\nmips = 0", "1 to 4000"),
    ] {
        let text = format!("suite = \"test\"\n[boot.main]\n{boot}\n");
        let error = format!("{:#}", read(&text).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn words_of_an_argv_are_filled_in() {
    let text = format!(
        "{HEAD}[[case]]\nname = \"a\"\nboot = \"main\"\nargv = [\"q\", \"{{kernel}}\"]\ntimeout_s = 6\n"
    );
    assert_eq!(read(&text).unwrap().cases[0].step.argv, ["q", "/bzImage"]);
}

#[test]
fn long_cases_are_skipped_with_a_reason() {
    let text = format!(
        "{HEAD}[[case]]\nname = \"a\"\nboot = \"main\"\nworkload = \"info\"\ntimeout_s = 6\nlong = true\n\
             [[case]]\nname = \"b\"\nboot = \"main\"\nworkload = \"info\"\ntimeout_s = 6\n"
    );
    let mut suite = read(&text).unwrap();
    assert!(suite.cases.iter().all(|c| c.skip.is_none()));
    suite.skip_long();
    assert_eq!(suite.cases[0].skip.as_deref(), Some("takes long: --long runs it"));
    assert!(suite.cases[1].skip.is_none());
}

#[test]
fn an_entry_with_several_boots_becomes_a_case_on_each() {
    let text = format!(
        "{HEAD}[boot.intel]\nlane = \"vmx\"\n[[case]]\nname = \"a\"\nboot = [\"main\", \"intel\"]\n\
             modes = [\"ve-apf\", \"hardware\"]\nworkload = \"info\"\ntimeout_s = 6\n"
    );
    let suite = read(&text).unwrap();
    let names: Vec<&str> = suite.cases.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["a@ve-apf/svm", "a@ve-apf/vmx", "a@hardware/vmx"]);
    let argv = |i: usize| suite.cases[i].step.argv.join(" ");
    assert!(argv(0).contains("--kernel /bzImage") && !argv(0).contains("movablecore"));
    assert!(argv(1).contains("--kernel /vmlinux") && argv(1).contains("ve-apf=injected"));
    assert!(argv(2).contains("ve-apf=hardware movablecore=128M"), "{}", argv(2));
    let (svm, vmx) = (&suite.boots["main"], &suite.boots["intel"]);
    assert_eq!((svm.cpus(), svm.mem_mib(), vmx.cpus(), vmx.mem_mib()), (2, 3072, 1, 1024));
}

#[test]
fn mistakes_in_the_table_are_found() {
    for (case, says) in [
        ("name = \"a\"\nboot = \"none\"\nworkload = \"x\"\ntimeout_s = 6", "no [boot.none]"),
        ("name = \"a\"\nboot = \"main\"\ntimeout_s = 6", "either a workload or an argv"),
        (
            "name = \"a\"\nboot = \"main\"\nworkload = \"x\"\ntimeout_s = 6\nexpect = [\"a\"]",
            "expected a comparison",
        ),
        (
            "name = \"a\"\nboot = \"main\"\nworkload = \"x\"\ntimeout_s = 6\nmodes = [\"hardware\"]",
            "none of its modes",
        ),
        (
            "name = \"a\"\nboot = \"main\"\nworkload = \"x\"\ntimeout_s = 6\ntypo = 1",
            "unknown field",
        ),
    ] {
        let Err(error) = read(&format!("{HEAD}[[case]]\n{case}\n")) else {
            panic!("accepted: {case}")
        };
        assert!(format!("{error:#}").contains(says), "{error:#}");
    }
}

#[test]
fn the_real_tables_are_well_formed() {
    let dir = crate::paths::root().join("qemu-tests/cases");
    for suite in ["test", "demo", "bench", "self-check"] {
        assert!(!load(&dir, suite).unwrap().cases.is_empty(), "{suite}");
    }
}
