//! Which groups a caller is of and what it is capable of, as far as `/proc` tells: FUSE passes on one group only, and
//! no capability.

/// CAP_FSETID, as a bit of the effective capabilities.
const FSETID: u64 = 1 << 4;

/// Whether the thread `tid`, which acts as `uid` and `gid`, may keep the setgid bit of what is `group`'s.
pub fn keeps_setgid(tid: u32, uid: u32, gid: u32, group: u32) -> bool {
    gid == group || judged(tid, uid, |status| is_of(status, group) || is_capable(status, uid))
}

/// Whether the thread `tid`, which acts as `uid`, may keep setuid and setgid bits of what it changes.
pub fn keeps_setid(tid: u32, uid: u32) -> bool {
    judged(tid, uid, |status| is_capable(status, uid))
}

fn judged(tid: u32, uid: u32, judge: impl FnOnce(&str) -> bool) -> bool {
    match std::fs::read_to_string(format!("/proc/{tid}/status")) {
        Ok(status) => judge(&status),
        // Outside our pid namespace, or hidden: root has what root usually has.
        Err(_) => uid == 0,
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn is_of(status: &str, group: u32) -> bool {
    let mut groups = field(status, "Groups").unwrap_or_default().split_ascii_whitespace();
    groups.any(|id| id.parse() == Ok(group))
}

fn is_capable(status: &str, uid: u32) -> bool {
    let capabilities = field(status, "CapEff").and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    // Capabilities in a user namespace of one's own look the same, so they count for root alone.
    uid == 0 && capabilities & FSETID != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_capabilities_are_found() {
        let status = "Name:\tx\nUid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nCapEff:\t0000000000000010\n";
        assert!(is_of(status, 24) && is_of(status, 1000) && !is_of(status, 100));
        assert!(!is_capable(status, 5), "a capability of who is not root may be of another namespace");
        assert!(is_capable(status, 0) && !is_capable("Groups:\t\nCapEff:\t0000000000000000\n", 0));
        assert!(keeps_setgid(std::process::id(), 1, 100, 100));
        assert!(keeps_setgid(u32::MAX, 0, 1, 100) && !keeps_setgid(u32::MAX, 1, 1, 100));
        assert!(keeps_setid(u32::MAX, 0) && !keeps_setid(u32::MAX, 1) && !keeps_setid(std::process::id(), 1));
    }
}
