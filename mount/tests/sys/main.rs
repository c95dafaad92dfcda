//! Tests of `mount::sys` with real mounts, daemons, guardians and signals.
//!
//! * The runner puts itself into a pid and a mount namespace of its own first: whatever a test
//!   mounts or starts ends with the runner, however that ends. As a plain user it also takes a user
//!   namespace; then the tests about *another* plain user cannot run, and it says so.
//! * Tests run one after the other, each with a scratch directory of its own. Other processes that
//!   they need are this binary again, in a [`roles`] role, chosen by the environment.
//! * Arguments are libtest's, as far as they make sense: names filter, `--list` lists.

mod attaching;
mod callers;
mod filesystem;
mod lifecycle;
mod plain_user;
mod roles;
mod runner;
mod unmounting;

fn main() {
    if let Some(role) = std::env::var_os(roles::ROLE) {
        roles::play(&role.to_string_lossy());
        return;
    }
    let mut tests = Vec::new();
    tests.extend_from_slice(attaching::TESTS);
    tests.extend_from_slice(lifecycle::TESTS);
    tests.extend_from_slice(callers::TESTS);
    tests.extend_from_slice(unmounting::TESTS);
    tests.extend_from_slice(plain_user::TESTS);
    runner::run(&tests);
}
