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
    concerned: Concerned,
}

/// What covers the names and attributes that a change may touch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    pub things: Vec<Promise>,
    /// It touches an inode that is not known here: its attributes may come, from before the
    /// change, while that is on its way. So nothing is answered for.
    pub any_inode: bool,
}

impl Changing {
    pub fn begin(fs: &Fs, op: &Op) -> Changing {
        let concerned = concerned(fs.cache(), op);
        fs.cache().begin_changing(&concerned);
        Changing { fs: fs.clone(), concerned }
    }

    /// Whoever asked for it has given up: the kernel, which has seen to what it concerns until now, must ask.
    pub fn given_up(&self) {
        let shown = self.fs.client().shown();
        let forget = if self.concerned.any_inode { shown.recall_all() } else { shown.recall(&self.concerned.things) };
        self.fs.have_forgotten(forget, Box::new(|| ()));
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.fs.cache().end_changing(&self.concerned);
    }
}

fn concerned(cache: &Cache, op: &Op) -> Concerned {
    // What is made finds nothing under its name, or changes nothing.
    let (mut made, mut names, mut inodes) = (Vec::new(), Vec::new(), Vec::new());
    match op {
        Op::Upload(upload) => match upload {
            Upload::Create { dir, name, .. } => made.push((*dir, name)),
            Upload::Link { ino, dir, name } => {
                made.push((*dir, name));
                inodes.push(*ino);
            }
            Upload::Rename { from_dir, from, to_dir, to, .. } => names.extend([(*from_dir, from), (*to_dir, to)]),
            Upload::Setattr { ino, .. }
            | Upload::SetXattr { ino, .. }
            | Upload::RemoveXattr { ino, .. }
            | Upload::SetAcl { ino, .. }
            | Upload::Fallocate { ino, .. }
            | Upload::Clone { to: ino, .. } => inodes.push(*ino),
            // Size and times of a file that is being written follow what is written; atime follows in its time.
            Upload::Write { .. } | Upload::Accessed { .. } => {}
        },
        Op::Delete(Delete::Unlink { dir, name } | Delete::Rmdir { dir, name }) => names.push((*dir, name)),
        Op::View(_) | Op::Lock(_) | Op::Session(_) => {}
    }
    let mut things: Vec<Promise> = made.iter().chain(&names).map(|(dir, _)| Promise::Dir(*dir)).collect();
    let mut any_inode = false;
    for (dir, name) in names {
        match cache.name_once(dir, name) {
            Some(ino) => inodes.push(ino),
            None => any_inode = true,
        }
    }
    let of_inode = |ino: Ino| [Some(Promise::Inode(ino)), cache.attr_once(ino).as_ref().map(covering)];
    things.extend(inodes.into_iter().flat_map(of_inode).flatten());
    things.sort_unstable();
    things.dedup();
    Concerned { things, any_inode }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Promises;
    use proto::message::{FileKind, RenameHow};
    use proto::{Epoch, Name, Position};

    const DIR: Ino = Ino(1);
    const FILE: Ino = Ino(7);

    fn name(name: &str) -> Name {
        Name::new(name.as_bytes()).expect("a name")
    }

    /// A cache that knows one name of the directory.
    fn cache(promises: &Promises) -> Cache {
        let cache = Cache::new();
        let at = Position { epoch: Epoch(1), partition: 0, offset: 1, index: 0 };
        let now_ms = proto::clock::monotonic_ms();
        promises.extend(now_ms, now_ms, at);
        let granted = promises.granted(at, &[Promise::Dir(DIR)]);
        cache.learn_from(promises, at, 0, &granted, &[], |l| l.name(DIR, &name("known"), Some((FILE, FileKind::File))));
        cache
    }

    /// The answer to a question from before the change may bring the attributes of what it
    /// touches while it is on its way: others may have been shown more by then.
    #[test]
    fn nothing_is_answered_for_while_a_change_to_an_unknown_inode_is_on_its_way() {
        let promises = Promises::default();
        let cache = cache(&promises);
        let unlink = |of: &str| concerned(&cache, &Op::Delete(Delete::Unlink { dir: DIR, name: name(of) }));
        let known = unlink("known");
        assert_eq!((known.things.contains(&Promise::Inode(FILE)), known.any_inode), (true, false));
        let rename = Upload::Rename {
            from_dir: DIR,
            from: name("known"),
            to_dir: DIR,
            to: name("other"),
            how: RenameHow::Replace,
        };
        assert!(concerned(&cache, &Op::Upload(rename)).any_inode);
        let unknown = unlink("other");
        assert!(unknown.any_inode);

        let elsewhere = Ino(9);
        let at = Position { epoch: Epoch(1), partition: 0, offset: 2, index: 0 };
        let granted = promises.granted(at, &[Promise::Dir(elsewhere)]);
        cache.learn_from(&promises, at, 0, &granted, &[], |l| l.name(elsewhere, &name("a"), None));
        let looks = || cache.lookup(&promises, elsewhere, &name("a")).is_some();
        assert!(looks());
        cache.begin_changing(&unknown);
        assert!(!looks());
        cache.end_changing(&unknown);
        assert!(looks());
    }
}
