//! Configuration of all programs, in one place.
