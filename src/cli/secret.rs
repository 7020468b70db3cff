//! Secrets from their files.
//!
//! Invariant: the secret goes from the file into a `Secret` and nowhere else; errors name the file,
//! not its content.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, bail};
use iscsi::proto::{ChapCredentials, Secret};

/// The credentials, if the options name some.
pub(super) fn credentials(
    user: Option<&str>,
    secret_file: Option<&Path>,
) -> anyhow::Result<Option<ChapCredentials>> {
    let (Some(name), Some(file)) = (user, secret_file) else {
        return Ok(None);
    };
    Ok(Some(ChapCredentials {
        name: name.to_owned(),
        secret: read("the CHAP secret file", file)?,
    }))
}

/// The secret in a file; `what` is that file in words, for errors. A file named `-` is standard input.
pub(super) fn read(what: &str, path: &Path) -> anyhow::Result<Secret> {
    let path = match path.as_os_str().as_encoded_bytes() {
        b"-" => Path::new("/dev/stdin"),
        _ => path,
    };
    let doing = || format!("reading {what} {}", path.display());
    let metadata = path.metadata().with_context(doing)?;
    if metadata.mode() & 0o077 != 0 && metadata.is_file() {
        tracing::warn!("{} can be read by others; chmod 600 it", path.display());
    }
    let mut text = std::fs::read_to_string(path).with_context(doing)?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.is_empty() {
        bail!(
            "{what} {} is empty; write the secret into it",
            path.display()
        );
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(content: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file
    }

    #[test]
    fn exactly_one_newline_is_trimmed() {
        for (content, secret) in [
            ("abc", "abc"),
            ("abc\n", "abc"),
            ("abc \n\n", "abc \n"),
            (" a", " a"),
        ] {
            assert_eq!(
                read("the file", file(content).path()).unwrap().expose(),
                secret
            );
        }
    }

    #[test]
    fn an_empty_or_absent_file_is_named() {
        let empty = file("\n");
        let error = format!("{:#}", read("the file", empty.path()).unwrap_err());
        assert!(error.contains("is empty"), "{error}");
        let error = format!(
            "{:#}",
            read("the file", Path::new("/no/such/secret")).unwrap_err()
        );
        assert!(error.contains("/no/such/secret"), "{error}");
    }
}
