//! Values as people write them: sizes, durations, brokers, names. Errors say what
//! would be right and leave the place to the caller.

use std::time::Duration;

/// A size in bytes: `1048576`, `512K`, `64M`, `2G`, `1T` (powers of 1024; `KiB`, `MB` and so on are the same).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write bytes, or a number with K, M, G or T, like 512M");
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// A duration: `30` (seconds), `500ms`, `30s`, `2m`, `1h`. At least a millisecond, at most 24 days.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write seconds, or a number with ms, s, m or h, like 30s");
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_ms = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    // Kafka's clients count in 31 bits of milliseconds.
    match number.checked_mul(unit_ms) {
        Some(ms) if ms >= 1 && ms <= i32::MAX as u64 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("`{text}` is out of range; a duration is between 1ms and 24 days")),
    }
}

/// `HOST:PORT[,HOST:PORT...]`
pub fn check_brokers(text: &str) -> Result<(), String> {
    let is_broker = |broker: &str| {
        let broker = broker.trim();
        broker.rsplit_once(':').is_some_and(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            let plain = !host.contains([':', '[', ']']);
            let clean = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@');
            clean && (bracketed || plain) && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
    };
    match text.split(',').find(|broker| !is_broker(broker)) {
        None => Ok(()),
        Some(broker) => Err(format!("`{broker}` is not a broker; write HOST:PORT[,HOST:PORT...], like kafka1:9092")),
    }
}

/// The start of topic names.
pub fn check_prefix(text: &str) -> Result<(), String> {
    let clean = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    // Kafka allows topic names of 249 characters.
    if clean && (1..=200).contains(&text.len()) {
        Ok(())
    } else {
        Err(format!("`{text}` is not a prefix; it takes 1 to 200 of A-Z a-z 0-9 . _ -"))
    }
}

pub fn check_user(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > 255 || text.contains(|c: char| c.is_control()) {
        return Err(format!("{text:?} is not a user's name; it takes 1 to 255 bytes without control characters"));
    }
    Ok(())
}
