//! `kfs status [DIR]`: what a running mount says of itself over its control socket.

use crate::sys::control::{self, Connection};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct StatusArgs {
    /// One JSON object a mount, a line each.
    #[arg(long)]
    json: bool,
    /// The mounted directory [default: all mounts of yours].
    dir: Option<PathBuf>,
}

pub(super) fn run(args: StatusArgs) -> anyhow::Result<()> {
    let connections = match &args.dir {
        Some(dir) => vec![control::connect_for(dir)?],
        None => control::connect_all(),
    };
    if connections.is_empty() && !args.json {
        println!("no kfs mount of yours is running");
    }
    let mut failed = None;
    for mut connection in connections {
        match show(&mut connection, args.json) {
            Ok(text) => println!("{text}"),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn show(connection: &mut Connection, as_json: bool) -> anyhow::Result<String> {
    let mounted = control::is_mounted(connection)?;
    let status = connection.status()?;
    let hello = connection.hello();
    if as_json {
        let whole = json!({ "mountpoint": hello.mountpoint, "source": hello.source, "pid": hello.pid,
            "mounted": mounted, "status": status });
        return Ok(whole.to_string());
    }
    let client = &status["client"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let seconds = |value: &Value| number(value) as f64 / 1000.0;
    let mut lines = vec![format!("{} on {} (pid {})", hello.source, hello.mountpoint, hello.pid)];
    if !mounted {
        lines.push("  unmounted, sending what is left in the background".to_owned());
    }
    lines.push(match &client["offline_ms"] {
        Value::Null => format!("  online; last heard from the server {:.1} s ago", seconds(&client["last_heard_ms"])),
        since => format!("  OFFLINE for {:.0} s: what is cached is shown as of then, the rest waits", seconds(since)),
    });
    lines.push(format!(
        "  pending: {} requests{}, {} of written content",
        number(&client["unanswered"]),
        match &client["oldest_unanswered_ms"] {
            Value::Null => String::new(),
            age => format!(" (the oldest for {:.1} s)", seconds(age)),
        },
        indicatif::BinaryBytes(number(&status["dirty_bytes"]) + number(&client["upload_bytes"])),
    ));
    match &client["journal"] {
        Value::Null => lines.push("  no journal: close() waits for the server".to_owned()),
        journal => {
            lines.push(format!(
                "  journal: {} requests, {} of {}, in {}",
                number(&journal["entries"]),
                indicatif::BinaryBytes(number(&journal["bytes"])),
                indicatif::BinaryBytes(number(&journal["max_bytes"])),
                journal["path"].as_str().unwrap_or("?")
            ));
            if let Some(why) = journal["broken"].as_str() {
                lines.push(format!("  the journal does not work: {why}"));
            }
        }
    }
    if let tier @ Value::Object(_) = &status["tier"] {
        let (hits, misses) = (number(&tier["hits"]), number(&tier["misses"]));
        lines.push(format!(
            "  disk cache: {} of {}, in {}; had {hits} of {} pieces",
            indicatif::BinaryBytes(number(&tier["bytes"])),
            indicatif::BinaryBytes(number(&tier["max_bytes"])),
            tier["dir"].as_str().unwrap_or("?"),
            hits + misses
        ));
        if let Some(why) = tier["broken"].as_str() {
            lines.push(format!("  the disk cache does not keep what comes: {why}"));
        }
    }
    if let Some(error) = client["last_log_error"].as_str() {
        lines.push(format!("  Kafka said last: {error}"));
    }
    for user in status["used_by"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        lines.push(format!("  used by {user}"));
    }
    Ok(lines.join("\n"))
}
