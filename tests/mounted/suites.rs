//! Test suites for filesystems that others wrote, run on a mount as mount(8) makes it.
//!
//! They are programs of their own crates: `cargo install --locked pjdfstest@0.2.2 fsx@0.3.2`.
//! `KFS_TEST_SEEDS` and `KFS_TEST_OPERATIONS` say how many seeds of how many operations `fsx` plays.

use crate::mount8::{in_namespace, in_namespace_within};
use crate::{needs_root, number};
use harness::command;
use std::time::Duration;

/// Where `cargo install` puts programs is looked at too.
const PROLOGUE: &str = r#"
    PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    installed() {
        command -v "$1" >/dev/null && return
        echo "$1 is needed: cargo install --locked $1@$2" >&2
        exit 1
    }
    # Where other users can go.
    mount -t tmpfs -o mode=755 none /mnt
    mkdir /mnt/kfs /mnt/other
    mount -t kfs "$SOURCE" /mnt/kfs -o "$OPTIONS,dev,suid,allow_other"
"#;

#[test]
fn pjdfstest_passes() {
    if !needs_root("act as other users") {
        return;
    }
    let script = r#"
        installed pjdfstest 0.2.2
        mount -t tmpfs none /mnt/other
        mkdir /mnt/kfs/suite
        # Whether a mount may become read-only, and which cases.
        suite() {
            cat > "$SCRATCH/pjdfstest.toml" <<-TOML
				[features]
				posix_fallocate = {}
				rename_ctime = {}
				utime_now = {}
				utimensat = {}
				[settings]
				naptime = 0.001
				allow_remount = $1
				[dummy_auth]
				entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
			TOML
            shift
            pjdfstest -c "$SCRATCH/pjdfstest.toml" -p /mnt/kfs/suite -s /mnt/other "$@" > "$SCRATCH/told" 2>&1 ||
                { grep -v '^ *[0-9]*: \|^ *at ' "$SCRATCH/told" >&2; exit 1; }
            grep '^Summary\|skipped$' "$SCRATCH/told"
        }
        suite false
        # On their own: other cases leave files open for writing, so that nothing could become read-only.
        suite true erofs
        umount /mnt/kfs
    "#;
    let told = in_namespace("pjdfstest", &format!("{PROLOGUE}{script}"));
    let mut skipped: Vec<&str> = told.lines().filter_map(|line| line.strip_suffix("skipped")).map(str::trim).collect();
    skipped.retain(|name| !name.contains("erofs"));
    // The C library knows the limits of some filesystems only. The machine's own tests have a file with 65,000 names.
    assert_eq!(skipped, ["link::link_count_max"], "{told}");
    let summaries: Vec<&str> = told.lines().filter(|line| line.starts_with("Summary")).collect();
    let [all, read_only] = summaries[..] else { panic!("{told}") };
    assert!(all.starts_with("Summary: 0 failed, 14 skipped, 384 passed"), "{told}");
    assert!(read_only.starts_with("Summary: 0 failed, 0 skipped, 13 passed"), "{told}");
}

#[test]
fn fsx_finds_nothing() {
    if !needs_root("run mount(8) with a type") {
        return;
    }
    let script = r#"
        installed fsx 0.3.2
        cat > "$SCRATCH/fsx.toml" <<-'TOML'
			flen = 1048576
			[opsize]
			max = 131072
			[weights]
			close_open = 1
			invalidate = 1
			mapread = 10
			mapwrite = 10
			read = 10
			write = 10
			truncate = 10
			fsync = 1
			fdatasync = 1
			posix_fallocate = 5
			punch_hole = 10
			sendfile = 5
			posix_fadvise = 1
			copy_file_range = 5
		TOML
        seed=0 done=0
        while [ $done -lt "$SEEDS" ]; do
            seed=$((seed + 1))
            if fsx -f "$SCRATCH/fsx.toml" -N "$OPERATIONS" -S "$seed" -P "$SCRATCH" "/mnt/kfs/file-$seed" > "$SCRATCH/told" 2>&1; then
                done=$((done + 1))
                cat "$SCRATCH/told"
            # Some seeds want to set no byte aside, which posix_fallocate(3) refuses: they end there on every filesystem.
            elif ! tail -1 "$SCRATCH/told" | grep -q 'POSIX_FALLOCATE .* 0x0 bytes'; then
                cat "$SCRATCH/told" >&2
                exit 1
            fi
        done
        umount /mnt/kfs
    "#;
    let (seeds, operations) = (number("KFS_TEST_SEEDS").unwrap_or(3), number("KFS_TEST_OPERATIONS").unwrap_or(1000));
    // Ten times what one takes on the embedded broker, most of it in waiting for checkpoints.
    let bound = command::SCRIPT_BOUND + Duration::from_millis(60) * (seeds * operations) as u32;
    let script = format!("SEEDS={seeds} OPERATIONS={operations}\n{PROLOGUE}{script}");
    let told = in_namespace_within(bound, "fsx", &script);
    assert_eq!(told.matches("All operations completed A-OK!").count(), seeds as usize, "{told}");
}
