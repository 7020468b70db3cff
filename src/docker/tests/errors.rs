//! `docs/errors.md`, the section of this room: each of its lines happens, and what it passes on has its own section.

use support::errors::Section;

use super::*;

/// Options, each wrong in its own way.
const OPTIONS: [(&str, &str); 11] = [
    ("help", ""),
    ("sise", "1"),
    ("compression", "zstd"),
    ("volumetype", "fast"),
    ("multiattach", "true"),
    ("uid", "postgres"),
    ("scheduler_hints", "same_host"),
    ("scheduler_hints", "same_hots=x"),
    ("scheduler_hints", "compression=x"),
    ("ro", "perhaps"),
    ("size", "huge"),
];

/// Options whose fault is one of a volume's: the room above tells, this one says of which option.
const PASSED_ON: [(&str, &str); 6] = [
    ("size", "huge"),
    ("fstype", "zfs"),
    ("mode", "rwx"),
    ("subdir", "../etc"),
    ("reclaim", "keep"),
    ("attached_elsewhere", "steal"),
];

impl Bed {
    /// What the engine shows of a refused creation, on one line.
    async fn refused(&self, (key, value): (&str, &str)) -> String {
        let body = json!({ "Name": "v1", "Opts": { key: value } });
        let (status, answer) = self.call("VolumeDriver.Create", body).await;
        assert_eq!(status, 500, "{key}={value}: {answer}");
        let text = answer["Err"].as_str().unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Why the plugin is not served; the second kind cannot be brought about: axum goes on after any error of a listener.
fn of_plugin(bed: &Bed) -> [Error; 2] {
    let socket = bed.directory.path().join("plugins/cinder.sock");
    let taken = Plugin::bind(&socket).unwrap_err();
    [taken, Error::Serve(std::io::Error::other("x"))]
}

#[tokio::test]
async fn every_error_of_the_plugin_happens_and_stands_in_the_document() {
    let bed = Bed::new();
    let mut texts = Vec::new();
    for option in OPTIONS {
        texts.push(bed.refused(option).await);
    }
    let no_name = json!({ "Name": 7 });
    texts.push(bed.err("VolumeDriver.Create", no_name).await);
    let (_, answer) = bed.call("VolumeDriver.Shrink", json!({})).await;
    texts.push(answer["Err"].as_str().unwrap().to_owned());
    texts.extend(of_plugin(&bed).iter().map(|error| match error {
        Error::Listen { .. } | Error::Serve(_) => line(error),
    }));
    Section::read("Docker").assert_is_of(&texts);
}

#[tokio::test]
async fn an_options_fault_that_is_a_volumes_stands_in_the_volumes_section() {
    let (bed, volumes) = (Bed::new(), Section::read("Volumes"));
    for option in PASSED_ON {
        let text = bed.refused(option).await;
        let prefix = format!("option {}: ", option.0);
        let cause = text.strip_prefix(&prefix).expect("it names the option");
        let is_one = |line: &str| line.contains(';') && !line.ends_with("CAUSE");
        assert!(volumes.line_of(cause).is_some_and(is_one), "{text}");
    }
}
