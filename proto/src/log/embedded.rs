//! An embedded broker for `kfs dev` and tests.
