//! atime as relatime has it, and what programs conclude from it.

use crate::{mounted, shared};
use harness::sh;

/// Whether a file has been written since it was last read is what mail programs ask: bash's `-N`.
const SCRIPT: &str = r#"
    new() { [[ -N $1 ]] || { echo "$1 is not new"; stat "$1"; exit 1; }; }
    old() { [[ ! -N $1 ]] || { echo "$1 is new"; stat "$1"; exit 1; }; }
    echo one > mail; new mail; sleep 0.02
    cat mail; old mail; atime=$(stat -c %x mail)
    sleep 0.02; cat mail; [[ $(stat -c %x mail) = "$atime" ]]
    echo two >> mail; new mail; sleep 0.02
    # The kernel still has the pages.
    cat mail; old mail
    chmod 600 mail; sleep 0.02; atime=$(stat -c %x mail); cat mail; [[ $(stat -c %x mail) > "$atime" ]]
    touch -a -d '2001-02-03 04:05:06.789 UTC' mail; [[ $(stat -c %X mail) = 981173106 ]]
    sleep 0.02; dd if=mail iflag=noatime of=/dev/null status=none; [[ $(stat -c %X mail) = 981173106 ]]
    # Older than a day.
    touch -d '2001-01-01' mail; touch -a -d '2001-01-02' mail; sleep 0.02; cat mail; old mail
    (( $(stat -c %X mail) > 1000000000 ))

    mkdir d; touch ref; sleep 0.02; echo > d/a; ln -s a d/l; sleep 0.02
    ls d > /dev/null; cat d/a; readlink d/l
    [[ $(find . -anewer ref | sort | tr '\n' ' ') = *"./d ./d/a ./d/l "* ]]
    [[ $(ls -tu d | head -n 1) = l ]]
    mtime=$(stat -c %y%z d/a); sleep 0.1; [[ $(stat -c %y%z d/a) = "$mtime" ]]
"#;

#[test]
fn a_read_moves_atime_as_relatime_has_it() {
    let mount = mounted("atime");
    sh(mount.path(), SCRIPT, &[]).unwrap();
    let script = r#"
        echo > other; sleep 0.02; stat "$1"/other > /dev/null; cat other; atime=$(stat -c %x other)
        # The other mount comes to know, though it has the file's attributes in its cache.
        for i in $(seq 1000); do
            [[ $(stat -c %x "$1"/other) != "$atime" ]] || exit 0
            sleep 0.05
        done
        exit 1
    "#;
    let other = shared().mount("atime").unwrap();
    sh(mount.path(), script, &[other.path()]).unwrap();
    // What is still to be told is told before the end.
    let script = "echo > last; sleep 0.02; cat last; stat -c %x last";
    let atime = sh(mount.path(), script, &[]).unwrap();
    mount.unmount().unwrap();
    let seen = sh(other.path(), "echo; stat -c %x last", &[]).unwrap();
    assert_eq!(seen, atime);
}

#[test]
fn noatime_moves_none() {
    shared().user_add("noatime").unwrap();
    let mount = shared().mount_with("noatime", "noatime").unwrap();
    let script = r#"
        echo > f; mkdir d; echo > d/f; ln -s f l
        before=$(stat -c %x f d l); sleep 0.02; cat f; ls d; readlink l; [[ $(stat -c %x f d l) = "$before" ]]
    "#;
    sh(mount.path(), script, &[]).unwrap();
}
