//! Own changes that are on their way: while one is not answered, the cache does not
//! answer for what it concerns. Requests of one mount run side by side, and their
//! answers come in any order; without this a program could be shown the result of a
//! later change and then, from the cache, a directory as it was before an earlier one.

use super::Fs;
use super::cache::{Cache, covering};
use proto::Ino;
use proto::message::{Delete, Op, Promise, Upload};

/// Ends when it is dropped.
pub struct Changing {
    fs: Fs,
    things: Vec<Promise>,
}

impl Changing {
    pub fn begin(fs: &Fs, op: &Op) -> Changing {
        let things = concerned(fs.cache(), op);
        fs.cache().begin_changing(&things);
        Changing { fs: fs.clone(), things }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.fs.cache().end_changing(&self.things);
    }
}

/// What covers the names and attributes that the change may touch, as far as it is known here;
/// what is not known here is not in the cache either.
fn concerned(cache: &Cache, op: &Op) -> Vec<Promise> {
    let (mut names, mut inodes) = (Vec::new(), Vec::new());
    match op {
        Op::Upload(upload) => match upload {
            Upload::Create { dir, name, .. } => names.push((*dir, name)),
            Upload::Link { ino, dir, name } => {
                names.push((*dir, name));
                inodes.push(*ino);
            }
            Upload::Rename { from_dir, from, to_dir, to, .. } => names.extend([(*from_dir, from), (*to_dir, to)]),
            Upload::Setattr { ino, .. } | Upload::SetXattr { ino, .. } | Upload::RemoveXattr { ino, .. } => {
                inodes.push(*ino);
            }
            // Size and times of a file that is being written follow what is written.
            Upload::Write { .. } => {}
        },
        Op::Delete(Delete::Unlink { dir, name } | Delete::Rmdir { dir, name }) => names.push((*dir, name)),
        Op::View(_) | Op::Session(_) => {}
    }
    let mut things = Vec::new();
    for (dir, name) in names {
        things.push(Promise::Dir(dir));
        inodes.extend(cache.name_once(dir, name));
    }
    let of_inode = |ino: Ino| [Some(Promise::Inode(ino)), cache.attr_once(ino).as_ref().map(covering)];
    things.extend(inodes.into_iter().flat_map(of_inode).flatten());
    things.sort_unstable();
    things.dedup();
    things
}
