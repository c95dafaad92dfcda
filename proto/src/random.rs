//! All randomness of kfs: keys, nonces, ids, and what OPAQUE and HPKE draw.
//!
//! It comes from the kernel. Nothing else may draw random numbers, so that a
//! simulation (the feature `simulation`) can put a seed in the kernel's place.

/// Fills `bytes` at random.
pub fn fill(bytes: &mut [u8]) {
    #[cfg(feature = "simulation")]
    if crate::simulation::fill(bytes) {
        return;
    }
    getrandom::fill(bytes).expect("the kernel's random source does not fail once seeded");
}

/// Random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// The same source as libraries want to see it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source;

impl hpke::rand_core::RngCore for Source {
    fn next_u32(&mut self) -> u32 {
        u32::from_le_bytes(random())
    }
    fn next_u64(&mut self) -> u64 {
        u64::from_le_bytes(random())
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        fill(bytes);
    }
}

impl hpke::rand_core::CryptoRng for Source {}

impl rand::RngCore for Source {
    fn next_u32(&mut self) -> u32 {
        u32::from_le_bytes(random())
    }
    fn next_u64(&mut self) -> u64 {
        u64::from_le_bytes(random())
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        fill(bytes);
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand::Error> {
        fill(bytes);
        Ok(())
    }
}

impl rand::CryptoRng for Source {}
