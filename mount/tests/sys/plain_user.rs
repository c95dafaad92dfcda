//! The same as an unprivileged user, through fusermount3.
use crate::runner::Test;
pub const TESTS: &[Test] = &[];
