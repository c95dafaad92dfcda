//! Files mapped into memory, on one mount and two.

use crate::{mounted, shared};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// A mapping of a file's first bytes.
struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    fn of(path: &Path, len: usize, flags: MapFlags) -> Map {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place; the mapping stays valid after the file is closed, until it is dropped.
        let at = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, &file, 0) }.unwrap();
        Map { at: at.cast(), len }
    }

    fn get(&self, from: usize, len: usize) -> Vec<u8> {
        assert!(from + len <= self.len);
        // Volatile: others change what is mapped.
        // SAFETY: within the mapping, which is readable.
        (from..from + len).map(|i| unsafe { self.at.add(i).read_volatile() }).collect()
    }

    fn set(&mut self, from: usize, bytes: &[u8]) {
        assert!(from + bytes.len() <= self.len);
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping, which is writable.
            unsafe { self.at.add(from + i).write_volatile(*byte) };
        }
    }

    fn sync(&self) {
        // SAFETY: exactly the mapping.
        unsafe { msync(self.at.cast(), self.len, MsyncFlags::SYNC) }.unwrap();
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { munmap(self.at.cast(), self.len) }.unwrap();
    }
}

const LEN: usize = 3 << 20;

#[test]
fn what_is_mapped_and_synced_is_on_the_server() {
    let mount = mounted("maps");
    let other = shared().mount("maps").unwrap();
    let path = mount.join("file");
    fs::write(&path, vec![b'.'; LEN]).unwrap();
    let mut map = Map::of(&path, LEN, MapFlags::SHARED);
    for (round, at) in [0, 4095, 4096, LEN / 2, LEN - 5].into_iter().enumerate() {
        let text = format!("map-{round}");
        map.set(at, text.as_bytes());
        map.sync();
        // No close, no wait: synced means that others see it who open it now.
        let mut seen = [0; 5];
        File::open(other.join("file")).unwrap().read_exact_at(&mut seen, at as u64).unwrap();
        assert_eq!(&seen, text.as_bytes());
    }
    // As durable as fsync: the mount is killed, and another one of nothing but the server's shows it.
    map.set(100, b"durable");
    map.sync();
    drop(map);
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(mtime.elapsed().unwrap_or_default() < Duration::from_secs(3600));
    mount.kill().unwrap();
    assert_eq!(&fs::read(other.join("file")).unwrap()[100..107], b"durable");
}

#[test]
fn maps_reads_and_writes_of_one_mount_are_one() {
    let mount = mounted("one-map");
    let path = mount.join("file");
    fs::write(&path, vec![b'.'; LEN]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (mut shared, mut private) = (Map::of(&path, LEN, MapFlags::SHARED), Map::of(&path, LEN, MapFlags::PRIVATE));
    file.write_all_at(b"written", 5000).unwrap();
    assert_eq!(shared.get(5000, 7), b"written");
    assert_eq!(private.get(5000, 7), b"written");
    shared.set(5000, b"shared!");
    let mut seen = [0; 7];
    file.read_exact_at(&mut seen, 5000).unwrap();
    assert_eq!(&seen, b"shared!");
    private.set(5000, b"private");
    shared.set(5000, b"sharing");
    assert_eq!((private.get(5000, 7), shared.get(5000, 7)), (b"private".to_vec(), b"sharing".to_vec()));
    drop(private);
    // What is mapped counts when the file has been closed and its name has gone.
    drop(file);
    fs::remove_file(&path).unwrap();
    shared.set(0, b"nameless");
    shared.sync();
    assert_eq!(shared.get(0, 8), b"nameless");
}

/// Of many files that are made one after the other what is written goes past the kernel's pages.
#[test]
fn what_is_written_past_the_pages_is_read_and_mapped_meanwhile_and_afterwards() {
    let mount = mounted("past-pages");
    let make = |number: usize| {
        let path = mount.join(format!("file {number}"));
        (File::create_new(&path).unwrap(), path)
    };
    let mut made: Vec<_> = (0..40).map(make).collect();
    for (round, (file, path)) in made.iter_mut().enumerate().skip(20) {
        let byte = b'a' + round as u8 % 26;
        let mut expected = Vec::new();
        // No whole pages.
        for part in 0..5 {
            file.write_all_at(&[byte; 3000], part * 3000).unwrap();
            expected.extend_from_slice(&[byte; 3000]);
            assert_eq!(fs::read(&*path).unwrap(), expected);
        }
        let reader = OpenOptions::new().read(true).write(true).open(&*path).unwrap();
        let (mut shared, private) =
            (Map::of(path, expected.len(), MapFlags::SHARED), Map::of(path, expected.len(), MapFlags::PRIVATE));
        assert_eq!((shared.get(0, 15_000), private.get(0, 15_000)), (expected.clone(), expected.clone()));
        file.write_all_at(b"beside the map", 7000).unwrap();
        expected[7000..7014].copy_from_slice(b"beside the map");
        let mut seen = vec![0; expected.len()];
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, expected);
        harness::run::wait_for("the maps", Duration::from_secs(20), || {
            (shared.get(0, 15_000) == expected && private.get(0, 15_000) == expected).then_some(())
        })
        .unwrap();
        shared.set(7100, b"through the map");
        shared.sync();
        expected[7100..7115].copy_from_slice(b"through the map");
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, expected);
        reader.write_all_at(b"through another handle", 14_990).unwrap();
        expected.truncate(14_990);
        expected.extend_from_slice(b"through another handle");
        assert_eq!(fs::read(&*path).unwrap(), expected);
    }
    let written: Vec<_> = made.iter().map(|(_, path)| fs::read(path).unwrap()).collect();
    drop(made);
    for (number, written) in written.iter().enumerate() {
        let path = mount.join(format!("file {number}"));
        assert_eq!(fs::read(&path).unwrap(), *written, "file {number}");
        // From here on the kernel's pages are written to.
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"again", 0).unwrap();
        assert_eq!(&fs::read(&path).unwrap()[..5], b"again");
    }
}

#[test]
fn a_map_made_after_a_close_shows_it_and_one_made_before_soon() {
    let mount = mounted("two-maps");
    let other = self::shared().mount("two-maps").unwrap();
    fs::write(mount.join("file"), vec![b'0'; LEN]).unwrap();
    let early = Map::of(&other.join("file"), LEN, MapFlags::SHARED);
    assert_eq!(early.get(LEN - 1, 1), b"0");
    for round in 1..5u8 {
        let mut map = Map::of(&mount.join("file"), LEN, MapFlags::SHARED);
        map.set(LEN - 1, &[b'0' + round]);
        map.sync();
        drop(map);
        let late = Map::of(&other.join("file"), LEN, MapFlags::SHARED);
        assert_eq!(late.get(LEN - 1, 1), [b'0' + round], "round {round}");
        harness::run::wait_for("the early map", Duration::from_secs(20), || {
            (early.get(LEN - 1, 1) == [b'0' + round]).then_some(())
        })
        .unwrap();
    }
}
