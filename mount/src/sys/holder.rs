//! Where a process has a file open, for people: found without asking the mount itself,
//! which may be the one that asks.

use std::fs;
use std::path::PathBuf;

/// The path by which the process has opened the inode, if that can be told.
pub fn path_of(pid: u32, ino: u64) -> Option<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?;
    let is_it =
        |info: &str| info.lines().any(|line| line.strip_prefix("ino:").map(str::trim) == Some(&ino.to_string()));
    open.filter_map(Result::ok).find_map(|entry| {
        // Neither of them touches the file.
        let info = fs::read_to_string(entry.path()).ok()?;
        let path = || fs::read_link(format!("/proc/{pid}/fd/{}", entry.file_name().to_str()?)).ok();
        is_it(&info).then(path)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_open_file_is_found_by_its_inode() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("open");
        let file = fs::File::create(&path).expect("makes");
        let ino = file.metadata().expect("is there").ino();
        assert_eq!(path_of(std::process::id(), ino).as_deref(), Some(path.as_path()));
        drop(file);
        assert_ne!(path_of(std::process::id(), ino).as_deref(), Some(path.as_path()));
    }
}
