//! Whether a caller is of a group, as far as `/proc` tells: FUSE passes on one group only, and no capability.

/// CAP_FSETID, as a bit of the effective capabilities.
const FSETID: u64 = 1 << 4;

/// Whether the thread `tid`, which acts as `uid` and `gid`, may keep the setgid bit of what is `group`'s.
pub fn keeps_setgid(tid: u32, uid: u32, gid: u32, group: u32) -> bool {
    if gid == group {
        return true;
    }
    match std::fs::read_to_string(format!("/proc/{tid}/status")) {
        Ok(status) => judged(&status, uid, group),
        // Outside our pid namespace, or hidden: root has what root usually has.
        Err(_) => uid == 0,
    }
}

fn judged(status: &str, uid: u32, group: u32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let mut groups = field("Groups").unwrap_or_default().split_ascii_whitespace();
    let capabilities = field("CapEff").and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    // Capabilities in a user namespace of one's own look the same, so they count for root alone.
    groups.any(|id| id.parse() == Ok(group)) || (uid == 0 && capabilities & FSETID != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_capabilities_are_found() {
        let status = "Name:\tx\nUid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nCapEff:\t0000000000000010\n";
        assert!(judged(status, 5, 24) && judged(status, 5, 1000));
        assert!(!judged(status, 5, 100), "a capability of who is not root may be of another namespace");
        assert!(judged(status, 0, 100));
        assert!(!judged("Groups:\t\nCapEff:\t0000000000000000\n", 0, 100));
        assert!(keeps_setgid(std::process::id(), 1, 100, 100));
        assert!(keeps_setgid(u32::MAX, 0, 1, 100) && !keeps_setgid(u32::MAX, 1, 1, 100));
    }
}
