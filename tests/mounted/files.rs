//! One file at a time: sizes, holes, links, open files whose names change, times, attributes, names.

use crate::{mounted, shared};
use harness::Scratch;
use harness::tree::{self, Random};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

#[test]
fn random_reads_and_writes_do_what_they_do_on_a_local_disk() {
    let scratch = Scratch::new("model");
    let mount = mounted("random");
    let open = |path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let mut random = Random::new(7);
    let (model, mut real) = (open(scratch.join("file")), open(mount.join("file")));
    const LARGEST: u64 = 3 << 20;
    for step in 0..400 {
        let at = random.below(LARGEST);
        let scale = random.below(11);
        let len = random.below(1 + (300 << scale)) as usize;
        match random.below(10) {
            0 => {
                model.set_len(at).unwrap();
                real.set_len(at).unwrap();
            }
            1 => real.sync_all().unwrap(),
            2 => {
                drop(real);
                real = open(mount.join("file"));
            }
            3..=5 => {
                let bytes = random.bytes(len);
                model.write_all_at(&bytes, at).unwrap();
                real.write_all_at(&bytes, at).unwrap();
            }
            _ => {
                let (mut a, mut b) = (vec![1; len], vec![2; len]);
                let (n, m) = (read_up_to(&model, &mut a, at), read_up_to(&real, &mut b, at));
                assert_eq!(n, m, "bytes read at {at} in step {step}");
                assert!(a[..n] == b[..n], "content at {at}+{len} in step {step}");
            }
        }
        assert_eq!(model.metadata().unwrap().len(), real.metadata().unwrap().len(), "size after step {step}");
    }
    drop(real);
    let expected = fs::read(scratch.join("file")).unwrap();
    assert!(fs::read(mount.join("file")).unwrap() == expected);
    let cold = shared().mount("random").unwrap();
    assert!(fs::read(cold.join("file")).unwrap() == expected, "another mount reads the same");
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> usize {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64).unwrap() {
            0 => break,
            n => read += n,
        }
    }
    read
}

#[test]
fn a_sparse_tebibyte_costs_nothing_but_its_content() {
    const TIB: u64 = 1 << 40;
    let mount = mounted("sparse");
    let path = mount.join("sparse");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(TIB).unwrap();
    file.write_all_at(b"the end", TIB - 7).unwrap();
    file.write_all_at(b"the middle", TIB / 2).unwrap();
    drop(file);

    let cold = shared().mount("sparse").unwrap();
    let file = File::open(cold.join("sparse")).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), TIB);
    assert!(metadata.blocks() < 10_000, "{} blocks of 512 bytes", metadata.blocks());
    let mut bytes = [1; 20];
    file.read_exact_at(&mut bytes[..10], TIB / 2).unwrap();
    assert_eq!(&bytes[..10], b"the middle");
    assert_eq!(read_up_to(&file, &mut bytes, TIB - 7), 7);
    assert_eq!(&bytes[..7], b"the end");
    let mut hole = vec![1; 1 << 20];
    file.read_exact_at(&mut hole, TIB / 4).unwrap();
    assert!(hole.iter().all(|byte| *byte == 0));
}

#[test]
fn hard_links_are_one_file() {
    let mount = mounted("links");
    fs::create_dir(mount.join("dir")).unwrap();
    fs::write(mount.join("a"), "one").unwrap();
    fs::hard_link(mount.join("a"), mount.join("dir/b")).unwrap();
    fs::hard_link(mount.join("dir/b"), mount.join("c")).unwrap();
    let (a, c) = (fs::metadata(mount.join("a")).unwrap(), fs::metadata(mount.join("c")).unwrap());
    assert_eq!((a.ino(), a.nlink()), (c.ino(), 3));
    fs::write(mount.join("c"), "two and more").unwrap();
    assert_eq!(fs::read(mount.join("a")).unwrap(), b"two and more");
    fs::remove_file(mount.join("a")).unwrap();
    fs::remove_file(mount.join("c")).unwrap();
    let b = fs::metadata(mount.join("dir/b")).unwrap();
    assert_eq!((b.nlink(), b.len()), (1, 12));
    assert_eq!(fs::hard_link(mount.join("dir"), mount.join("d")).unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[test]
fn an_open_file_survives_its_names() {
    let mount = mounted("nameless");
    let path = mount.join("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b" and after").unwrap();
    file.sync_all().unwrap();
    let mut bytes = vec![0; 16];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, b"before and after");
    // The name is free at once, and means another file.
    fs::write(&path, "new").unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, b"before and after");

    // A file that is replaced by a rename is still read through what was opened before.
    let old = File::open(&path).unwrap();
    fs::write(mount.join("next"), "replacement").unwrap();
    fs::rename(mount.join("next"), &path).unwrap();
    let mut text = String::new();
    (&old).read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
    assert_eq!(fs::read_to_string(&path).unwrap(), "replacement");

    // A handle follows its file through a rename.
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    fs::create_dir(mount.join("dir")).unwrap();
    fs::rename(&path, mount.join("dir/moved")).unwrap();
    (&file).write_all(b"!").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(mount.join("dir/moved")).unwrap(), "replacement!");
}

#[test]
fn renames_replace_refuse_and_exchange() {
    let mount = mounted("rename");
    let at = |name: &str| mount.join(name);
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("a"), "a").unwrap();
    fs::write(at("b"), "b").unwrap();

    let refused = |from: &str, to: &str| fs::rename(at(from), at(to)).unwrap_err().raw_os_error().unwrap();
    assert_eq!(refused("dir", "dir/sub/inside"), libc::EINVAL);
    assert_eq!(refused("empty", "dir"), libc::ENOTEMPTY);
    assert_eq!(refused("a", "dir"), libc::EISDIR);
    assert_eq!(refused("dir", "a"), libc::ENOTDIR);
    assert_eq!(refused("absent", "c"), libc::ENOENT);
    fs::rename(at("dir"), at("empty")).expect("an empty directory is replaced");
    assert!(at("empty/sub").is_dir());

    let with = |flags, from: &str, to: &str| rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags);
    assert_eq!(with(RenameFlags::NOREPLACE, "a", "b").unwrap_err(), rustix::io::Errno::EXIST);
    with(RenameFlags::NOREPLACE, "a", "c").unwrap();
    with(RenameFlags::EXCHANGE, "c", "empty").expect("a file and a directory change places");
    assert!(at("c/sub").is_dir());
    assert_eq!(fs::read(at("empty")).unwrap(), b"a");
    assert_eq!(with(RenameFlags::EXCHANGE, "b", "absent").unwrap_err(), rustix::io::Errno::NOENT);
}

#[test]
fn what_is_wrong_gets_the_errno_of_a_local_disk() {
    let mount = mounted("wrong");
    let at = |name: &str| mount.join(name);
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::write(at("file"), "content").unwrap();
    let errno = |error: std::io::Error| error.raw_os_error().unwrap();
    assert_eq!(errno(fs::remove_dir(at("dir")).unwrap_err()), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(at("file")).unwrap_err()), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(at("dir")).unwrap_err()), libc::EISDIR);
    assert_eq!(errno(fs::create_dir(at("dir")).unwrap_err()), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(at("absent/dir")).unwrap_err()), libc::ENOENT);
    assert_eq!(errno(fs::write(at("file/under"), "").unwrap_err()), libc::ENOTDIR);
    let exclusive = OpenOptions::new().write(true).create_new(true).open(at("file"));
    assert_eq!(errno(exclusive.unwrap_err()), libc::EEXIST);
    assert_eq!(errno(fs::read_link(at("file")).unwrap_err()), libc::EINVAL);
    assert_eq!(errno(fs::write(at(&"x".repeat(256)), "").unwrap_err()), libc::ENAMETOOLONG);
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    assert_eq!(errno(fs::read(at("loop")).unwrap_err()), libc::ELOOP);
    assert_eq!(fs::read(at("file")).unwrap(), b"content");
}

#[test]
fn extended_attributes_are_kept() {
    let mount = mounted("xattr");
    let path = mount.join("file");
    fs::write(&path, "").unwrap();
    let large = vec![7u8; 60_000];
    rustix::fs::setxattr(&path, "user.small", b"value", XattrFlags::CREATE).unwrap();
    rustix::fs::setxattr(&path, "user.large", &large, XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&path, "user.empty", b"", XattrFlags::empty()).unwrap();
    let again = rustix::fs::setxattr(&path, "user.small", b"other", XattrFlags::CREATE);
    assert_eq!(again.unwrap_err(), rustix::io::Errno::EXIST);
    let absent = rustix::fs::setxattr(&path, "user.absent", b"other", XattrFlags::REPLACE);
    assert_eq!(absent.unwrap_err(), rustix::io::Errno::NODATA);

    let cold = shared().mount("xattr").unwrap();
    let path = cold.join("file");
    let get = |name: &str| {
        let mut value = vec![0u8; 65_536];
        let len = rustix::fs::getxattr(&path, name, &mut value[..])?;
        Ok::<_, rustix::io::Errno>(value[..len].to_vec())
    };
    assert_eq!(get("user.small").unwrap(), b"value");
    assert_eq!(get("user.large").unwrap(), large);
    assert_eq!(get("user.empty").unwrap(), b"");
    rustix::fs::removexattr(&path, "user.large").unwrap();
    assert_eq!(get("user.large").unwrap_err(), rustix::io::Errno::NODATA);
    let mut list = [0u8; 1000];
    let len = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    let mut names: Vec<&[u8]> = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    assert_eq!(names, [&b"user.empty"[..], b"user.small"]);
}

#[test]
fn times_modes_and_special_files_are_kept() {
    let mount = mounted("times");
    let path = mount.join("file");
    fs::write(&path, "x").unwrap();
    for seconds in [-1_000_000_000, 0, 1, 1_234_567_890, 4_294_967_296 + 5] {
        let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (seconds, 123_456_789));
    }
    for mode in [0o000, 0o4755, 0o1777, 0o2711, 0o644] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
    }
    let fifo = mount.join("fifo");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, 0o620.into(), 0).unwrap();
    assert_eq!(fs::metadata(&fifo).unwrap().mode() & libc::S_IFMT, libc::S_IFIFO);
    let listening = std::os::unix::net::UnixListener::bind(mount.join("socket"));
    assert!(listening.is_ok(), "{listening:?}");

    // What opening with these flags must do.
    fs::write(&path, "content").unwrap();
    let mut appending = OpenOptions::new().append(true).open(&path).unwrap();
    appending.write_all(b"+1").unwrap();
    appending.write_all(b"+2").unwrap();
    drop(appending);
    assert_eq!(fs::read(&path).unwrap(), b"content+1+2");
    let emptied = OpenOptions::new().write(true).custom_flags(libc::O_TRUNC).open(&path).unwrap();
    assert_eq!(emptied.metadata().unwrap().len(), 0);
    let space = rustix::fs::statvfs(mount.path()).unwrap();
    assert!(space.f_blocks > 0 && space.f_bavail > 0);
    assert_eq!(space.f_namemax, 255);
}

#[test]
fn a_mapped_file_is_written_back() {
    const LEN: usize = 300_000;
    let mount = mounted("mapped");
    let path = mount.join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(LEN as u64).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: a new mapping at an address of the kernel's choice; checked below, and unmapped before `file` goes.
    let map =
        unsafe { libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0) };
    assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: the mapping is LEN bytes long, readable, writable, and nobody else's.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), LEN) };
    let expected = Random::new(9).bytes(LEN);
    bytes.copy_from_slice(&expected);
    // SAFETY: exactly the mapping made above; `bytes` is not used again.
    unsafe {
        assert_eq!(libc::msync(map, LEN, libc::MS_SYNC), 0, "{}", std::io::Error::last_os_error());
        libc::munmap(map, LEN);
    }
    drop(file);
    let cold = shared().mount("mapped").unwrap();
    assert!(fs::read(cold.join("file")).unwrap() == expected);
}

#[test]
fn any_name_is_a_name() {
    let mount = mounted("names");
    let mut names: Vec<OsString> = tree::odd_names();
    names.extend(
        (1..=255u8).filter(|byte| *byte != b'/' && *byte != b'.').map(|byte| OsStr::from_bytes(&[byte]).to_owned()),
    );
    // Two of the odd names are no longer than others made here.
    names.sort();
    names.dedup();
    for name in &names {
        fs::write(mount.join(name), name.as_bytes()).unwrap_or_else(|error| panic!("{name:?}: {error}"));
    }
    let all: Vec<&OsStr> = names.iter().map(OsString::as_os_str).collect();
    tree::lists(mount.path(), &all).unwrap();
    let cold = shared().mount("names").unwrap();
    tree::lists(cold.path(), &all).unwrap();
    for name in &names {
        assert_eq!(fs::read(cold.join(name)).unwrap(), name.as_bytes(), "{name:?}");
        fs::remove_file(cold.join(name)).unwrap();
    }
    tree::lists(mount.path(), &[]).unwrap();
}
