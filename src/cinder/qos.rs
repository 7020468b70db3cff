//! The `qos_specs` of a connection: what the front end must keep to.
//!
//! Source: `cinder/volume/manager.py` (only specs whose consumer is the front end or both; `_per_gb` is multiplied out
//! before), `nova/virt/libvirt/volume/volume.py` (the keys); numbers come as text.
//!
//! Invariant: a limit that cannot be read is an error: a volume without it would take what others have paid for.

use serde_json::{Map, Value};

use super::error::Error;
use crate::block::{Rate, Rates};

/// None, null and an empty object are no limits.
pub(super) fn parse(specs: Option<&Value>) -> Result<Rates, Error> {
    let specs = match specs {
        None | Some(Value::Null) => return Ok(Rates::default()),
        Some(Value::Object(specs)) => specs,
        Some(_) => {
            return Err(Error::ConnectionInfo(
                "its qos_specs are no object".to_owned(),
            ));
        }
    };
    for key in specs.keys().filter(|key| !is_known(key)) {
        // A word of the server's, shortened to what keys look like.
        let key: String = key
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
            .take(40)
            .collect();
        tracing::warn!(key, "not a limit that is known here: not kept");
    }
    Ok(Rates {
        total_iops: rate(specs, "total_iops_sec")?,
        read_iops: rate(specs, "read_iops_sec")?,
        write_iops: rate(specs, "write_iops_sec")?,
        total_bytes: rate(specs, "total_bytes_sec")?,
        read_bytes: rate(specs, "read_bytes_sec")?,
        write_bytes: rate(specs, "write_bytes_sec")?,
    })
}

const KEYS: [&str; 6] = [
    "total_iops_sec",
    "read_iops_sec",
    "write_iops_sec",
    "total_bytes_sec",
    "read_bytes_sec",
    "write_bytes_sec",
];

fn is_known(key: &str) -> bool {
    KEYS.contains(&key.strip_suffix("_max").unwrap_or(key))
}

/// Nought is no limit, as for libvirt.
fn rate(specs: &Map<String, Value>, key: &str) -> Result<Option<Rate>, Error> {
    let per_second = number(specs, key)?.filter(|&number| number > 0);
    let burst = number(specs, &format!("{key}_max"))?.filter(|&number| number > 0);
    Ok(per_second.map(|per_second| Rate { per_second, burst }))
}

fn number(specs: &Map<String, Value>, key: &str) -> Result<Option<u64>, Error> {
    let value = match specs.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let text = value.as_str().map(str::trim);
    let number = value.as_u64().or_else(|| text?.parse().ok());
    let wrong = || Error::ConnectionInfo(format!("{key} in its qos_specs is no whole number"));
    number.map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_come_as_text_and_nought_is_no_limit() {
        let specs = json!({"total_iops_sec": "100", "read_bytes_sec": 1_000_000, "read_bytes_sec_max": "5000000",
            "write_iops_sec": "0", "size_iops_sec": "4096"});
        let rates = parse(Some(&specs)).unwrap();
        let expected = Rates {
            total_iops: Some(Rate {
                per_second: 100,
                burst: None,
            }),
            read_bytes: Some(Rate {
                per_second: 1_000_000,
                burst: Some(5_000_000),
            }),
            ..Rates::default()
        };
        assert_eq!(rates, expected);
        for none in [None, Some(json!(null)), Some(json!({}))] {
            assert!(!parse(none.as_ref()).unwrap().is_limited());
        }
    }

    #[test]
    fn a_limit_that_cannot_be_read_is_an_error() {
        for specs in [
            json!({"total_iops_sec": "many"}),
            json!({"read_iops_sec": -1}),
            json!({"write_bytes_sec_max": {}}),
            json!([1]),
        ] {
            let text = parse(Some(&specs)).unwrap_err().to_string();
            assert!(text.contains("qos_specs"), "{text}");
        }
    }
}
