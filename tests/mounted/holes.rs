//! fallocate(2) and lseek(2) for holes, as programs use them.

use crate::{mounted, shared};
use harness::tree::Random;
use harness::{Scratch, command};
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(KEEP);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;

#[test]
fn ranges_are_allocated_and_cleared_as_on_a_local_disk() {
    let scratch = Scratch::new("holes");
    let mount = mounted("holes");
    let open = |path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let (model, real) = (open(scratch.join("file")), open(mount.join("file")));
    let other = shared().mount("holes").unwrap();
    let mut random = Random::new(11);
    for step in 0..150 {
        let (at, len) = (random.below(1 << 20), 1 + random.below(300_000));
        let flags = match random.below(8) {
            0 => FallocateFlags::empty(),
            1 => KEEP,
            2 => PUNCH,
            3 => ZERO,
            4 => ZERO.union(KEEP),
            _ => {
                let bytes = random.bytes(len as usize);
                model.write_all_at(&bytes, at).unwrap();
                real.write_all_at(&bytes, at).unwrap();
                continue;
            }
        };
        assert_eq!(fallocate(&model, flags, at, len), Ok(()), "{flags:?} on the local disk");
        assert_eq!(fallocate(&real, flags, at, len), Ok(()), "{flags:?} in step {step}");
        let (expected, found) = (fs::read(scratch.join("file")).unwrap(), fs::read(mount.join("file")).unwrap());
        assert!(found == expected, "content after {flags:?} of {at}+{len} in step {step}");
        assert!(fs::read(other.join("file")).unwrap() == expected, "another mount's in step {step}");
    }
}

#[test]
fn what_is_not_supported_or_makes_no_sense_says_so() {
    let scratch = Scratch::new("holes-bad");
    let mount = mounted("holes-bad");
    let open = |path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let (model, real) = (open(scratch.join("file")), open(mount.join("file")));
    // ext4 can do these, for whole blocks; FUSE does not pass them on.
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&real, flags, 0, 4096), Err(Errno::OPNOTSUPP));
    }
    for (flags, offset, len) in [(FallocateFlags::PUNCH_HOLE, 0, 10), (KEEP, 0, 0), (PUNCH, 0, 0)] {
        let expected = fallocate(&model, flags, offset, len);
        assert!(expected.is_err());
        assert_eq!(fallocate(&real, flags, offset, len), expected, "{flags:?} {offset}+{len}");
    }
    assert_eq!(seek(&real, SeekFrom::Data(0)), Err(Errno::NXIO));
    assert_eq!(seek(&real, SeekFrom::Hole(0)), Err(Errno::NXIO));
    let reader = fs::File::open(mount.join("file")).unwrap();
    assert_eq!(fallocate(&reader, FallocateFlags::empty(), 0, 10), Err(Errno::BADF));
}

#[test]
fn programs_copy_without_reading() {
    let mount = mounted("copies");
    let content = Random::new(3).bytes(9_000_000);
    fs::write(mount.join("from"), &content).unwrap();
    let (from, to) = (fs::File::open(mount.join("from")).unwrap(), fs::File::create(mount.join("to")).unwrap());
    let copied = copy_file_range(&from, Some(&mut 1_000_000), &to, Some(&mut 5_000_000), 4_000_000).unwrap();
    assert_eq!(copied, 4_000_000);
    let mut expected = vec![0; 5_000_000];
    expected.extend_from_slice(&content[1_000_000..5_000_000]);
    assert!(fs::read(mount.join("to")).unwrap() == expected);
    assert_eq!(copy_file_range(&from, Some(&mut 9_000_000), &to, Some(&mut 0), 10), Ok(0));
    assert_eq!(copy_file_range(&to, Some(&mut 0), &from, Some(&mut 0), 10), Err(Errno::BADF));
    let other = shared().mount("copies").unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-euc", "cp from copy && cmp from copy"]).current_dir(other.path());
    command::run(&mut shell, command::SCRIPT_BOUND).unwrap().done().unwrap();
    assert!(fs::read(mount.join("copy")).unwrap() == content);
}

#[test]
fn programs_find_holes_and_keep_them() {
    let mount = mounted("holes-kept");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("sparse")).unwrap();
    file.write_all_at(&[1; 10_000], 0).unwrap();
    file.write_all_at(&[2; 10_000], 1 << 30).unwrap();
    fallocate(&file, PUNCH, 2_000, 3_000).unwrap();
    for (from, to) in [
        (SeekFrom::Hole(0), 2_000),
        (SeekFrom::Data(2_000), 5_000),
        (SeekFrom::Hole(5_000), 10_000),
        (SeekFrom::Data(10_000), 1 << 30),
        (SeekFrom::Hole(1 << 30), (1 << 30) + 10_000),
    ] {
        assert_eq!(seek(&file, from), Ok(to), "{from:?}");
    }
    drop(file);
    let blocks = |name: &str| fs::metadata(mount.join(name)).unwrap().blocks();
    assert!(blocks("sparse") < 100, "{} blocks", blocks("sparse"));
    let script =
        "cp --sparse=auto sparse copy && tar -Scf t.tar sparse && rm sparse && tar -xf t.tar && cmp sparse copy";
    let mut shell = Command::new("sh");
    shell.args(["-euc", script]).current_dir(mount.path());
    command::run(&mut shell, command::SCRIPT_BOUND).unwrap().done().unwrap();
    for name in ["sparse", "copy"] {
        assert!(blocks(name) < 200, "{name} has {} blocks", blocks(name));
        assert_eq!(fs::metadata(mount.join(name)).unwrap().len(), (1 << 30) + 10_000);
    }
    assert!(blocks("t.tar") < 200);
}
