//! What a server leaves behind when everything is over: sound, and without garbage.

use super::bus::Bus;
use super::disk::SimDisk;
use server::limits::Limits;
use std::path::Path;
use std::time::Duration;

/// What is not needed goes within a run's time, so that what is needed is seen to stay;
/// and little content is enough for packs.
pub const SHORT: Limits = Limits {
    history_ms: 10_000,
    quote_ms: 20_000,
    bytes_total: 1 << 50,
    grace: Duration::from_secs(3),
    sweep_every: Duration::from_secs(5),
    pack_bytes: 128 << 10,
    tail_bytes: 8 << 10,
    checkpoint_every: Duration::from_secs(5),
    window_requests: 256,
};

/// Sessions have ended by then and may be quoted from no more, history is over, and
/// checkpoints are past all of it.
pub const GARBAGE_GOES_WITHIN: Duration = Duration::from_secs(300);

/// Checks the data directory of a server that has been stopped or killed, as
/// `kfs-server check` does. `settled`: it lived for so long that no garbage may be left.
/// What the log has lost before it was ingested is nobody's fault.
pub fn check_server(data: &Path, disk: &SimDisk, settled: bool, bus: &Bus) -> Result<(), String> {
    let report = server::check::check(data, None, &disk.disk());
    let report = report.map_err(|error| format!("what the server keeps cannot be checked: {error}"))?;
    let violations = report.violations();
    let lost = report.packs.missing.iter().filter(|name| bus.has_lost(name)).count() as u64;
    if violations.count > lost
        && let Some(first) = violations.told.first()
    {
        return Err(format!("what the server keeps is not sound, {} violations: {first}", violations.count));
    }
    let history: u64 = report.partitions.iter().map(|state| state.history_rows).sum();
    if settled && (report.packs.orphans > 0 || history > 0) {
        let packs = &report.packs;
        return Err(format!(
            "{} chunks ({} bytes) that nothing refers to and {history} rows of history are kept for ever",
            packs.orphans, packs.orphan_bytes
        ));
    }
    Ok(())
}
