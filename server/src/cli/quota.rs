//! `user quota` and what `user list` shows of quotas.

use super::{Cluster, connected};
use proto::config::parse_size;
use proto::message::{Quota, Usage, UserName};

/// A limit as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(Option<u64>);

/// `10G`, or `none`.
pub fn bytes(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    parse_size(text).map(|bytes| Limit(Some(bytes))).map_err(|wrong| format!("{wrong}, or none"))
}

/// `100000`, or `none`.
pub fn inodes(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        // A namespace has its root.
        _ => match text.parse() {
            Ok(inodes @ 1..) => Ok(Limit(Some(inodes))),
            _ => Err(format!("`{text}` is not a number of inodes; write one, at least 1, or none")),
        },
    }
}

pub fn run(name: &str, bytes: Option<Limit>, inodes: Option<Limit>, cluster: &Cluster) -> anyhow::Result<()> {
    let name = UserName::new(name)?;
    let changed = |quota: Quota| Quota {
        bytes: bytes.map_or(quota.bytes, |limit| limit.0),
        inodes: inodes.map_or(quota.inodes, |limit| limit.0),
    };
    let is_change = bytes.is_some() || inodes.is_some();
    let (quota, usage) = connected(&cluster.setting()?, async |mut admin| {
        if is_change {
            return Ok(admin.user_quota(&name, changed).await?);
        }
        let (info, usage) = admin.usage(&name).await?;
        Ok((info.quota, usage))
    })?;
    println!("{name}: {}", told(quota, usage));
    Ok(())
}

fn told(quota: Quota, usage: Usage) -> String {
    let of = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |limit| format!("of {limit}"));
    format!("{} bytes ({}), {} inodes ({})", usage.bytes, of(quota.bytes), usage.inodes, of(quota.inodes))
}

/// A limit in a table.
pub fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_sizes_numbers_or_none() {
        assert_eq!(bytes("2M"), Ok(Limit(Some(2 << 20))));
        assert_eq!(bytes("none"), Ok(Limit(None)));
        assert!(bytes("-1").unwrap_err().contains("or none"));
        assert_eq!(inodes("7"), Ok(Limit(Some(7))));
        assert!(inodes("0").is_err() && inodes("7K").is_err() && inodes("").is_err());
    }
}
