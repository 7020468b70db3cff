//! The service catalog: which address of block storage to use, and which project's part of it.
//!
//! Source: openstack/service-types-authority (official type and aliases); Cinder's `/v3/` version document.
//!
//! Invariants:
//! 1. The order of the catalog means nothing: it changes from token to token.
//! 2. What is not found is answered with what there is.

use std::collections::BTreeSet;

use reqwest::Url;
use serde::Deserialize;

use super::error::{Error, listed};
use super::fault::word;
use super::http::without_query;
use crate::config::{CloudConfig, Interface};

/// The official type first, then its aliases. `volumev2` is gone from the servers and not listed.
const TYPES: [&str; 4] = ["block-storage", "volumev3", "volume", "block-store"];

/// A service of the catalog.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Service {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

/// One of its addresses.
#[derive(Clone, Debug, Deserialize)]
struct Endpoint {
    interface: String,
    region_id: Option<String>,
    region: Option<String>,
    url: String,
}

impl Endpoint {
    fn region(&self) -> &str {
        self.region_id
            .as_deref()
            .or(self.region.as_deref())
            .unwrap_or_default()
    }
}

/// The address of block storage for this region and interface.
pub(super) fn find(catalog: &[Service], config: &CloudConfig) -> Result<Url, Error> {
    if let Some(url) = &config.endpoint_override {
        return parse(url);
    }
    for kind in TYPES {
        let endpoints: Vec<&Endpoint> = catalog
            .iter()
            .filter(|service| service.kind == kind)
            .flat_map(|service| &service.endpoints)
            .filter(|endpoint| endpoint.interface == config.interface.as_str())
            .filter(|endpoint| {
                config
                    .region
                    .as_deref()
                    .is_none_or(|region| endpoint.region() == region)
            })
            // The type `volume` may still hold an address of version 1 or 2.
            .filter(|endpoint| !endpoint.url.contains("/v1/") && !endpoint.url.contains("/v2/"))
            .collect();
        let regions: BTreeSet<&str> = endpoints.iter().map(|endpoint| endpoint.region()).collect();
        if regions.len() > 1 {
            return Err(Error::Catalog {
                wanted: "in one region only".to_owned(),
                found: format!("it in {}", joined(&regions)),
                remedy: "set region_name (OS_REGION_NAME)".to_owned(),
            });
        }
        if let Some(endpoint) = endpoints.first() {
            return parse(&endpoint.url);
        }
    }
    Err(absent(catalog, config))
}

fn parse(url: &str) -> Result<Url, Error> {
    let parsed = Url::parse(url).ok().filter(Url::has_host);
    parsed
        .filter(|url| url.as_str().len() <= URL_BYTES_MAX)
        .ok_or_else(|| Error::NotCinder {
            // What stands before an `@` may be a password.
            url: word(url.rsplit('@').next().unwrap_or_default()),
            found: "this is not an address".to_owned(),
        })
}

/// Chosen freely: what proxies and servers take at least, and errors print it.
const URL_BYTES_MAX: usize = 2048;

fn absent(catalog: &[Service], config: &CloudConfig) -> Error {
    let wanted = match &config.region {
        Some(region) => format!(
            "in region {region} with interface {}",
            config.interface.as_str()
        ),
        None => format!("with interface {}", config.interface.as_str()),
    };
    let storage: Vec<&Endpoint> = catalog
        .iter()
        .filter(|service| TYPES.contains(&service.kind.as_str()))
        .flat_map(|service| &service.endpoints)
        .collect();
    if catalog.is_empty() {
        return Error::Catalog {
            wanted,
            found: "no entry at all".to_owned(),
            remedy: "the credentials are without a project: set project_name (OS_PROJECT_NAME)"
                .to_owned(),
        };
    }
    if storage.is_empty() {
        let kinds: BTreeSet<&str> = catalog
            .iter()
            .map(|service| service.kind.as_str())
            .collect();
        return Error::Catalog {
            wanted,
            found: format!("the types {}", joined(&kinds)),
            remedy: "is Cinder installed in this cloud? else set block_storage_endpoint_override"
                .to_owned(),
        };
    }
    let regions: BTreeSet<&str> = storage.iter().map(|endpoint| endpoint.region()).collect();
    let interfaces: BTreeSet<&str> = storage
        .iter()
        .map(|endpoint| endpoint.interface.as_str())
        .collect();
    Error::Catalog {
        wanted,
        found: format!(
            "regions {} with interfaces {}",
            joined(&regions),
            joined(&interfaces)
        ),
        remedy: match config.interface {
            Interface::Public => "set region_name (OS_REGION_NAME) to one of these",
            Interface::Internal | Interface::Admin => {
                "set region_name (OS_REGION_NAME) and interface (OS_INTERFACE) to some of these"
            }
        }
        .to_owned(),
    }
}

fn joined(words: &BTreeSet<&str>) -> String {
    let words: Vec<String> = words.iter().map(|text| word(text)).collect();
    listed(&words)
}

/// Cinder's address taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// Up to and with `v3`, without a slash at the end.
    pub(super) versioned: Url,
    /// The address had the project's id after it.
    pub(super) has_project: bool,
}

impl Base {
    /// From `http://host/v3`, `http://host/volume/v3/PROJECT`, `http://host:8776/` and the like.
    pub(super) fn of(url: &Url, project_id: Option<&str>) -> Result<Self, Error> {
        let mut path: Vec<&str> = url
            .path()
            .split('/')
            .filter(|segment| !segment.is_empty())
            .collect();
        let has_project = project_id.is_some_and(|id| path.last() == Some(&id));
        if has_project {
            path.pop();
        }
        let is_version = |segment: &str| {
            segment
                .strip_prefix('v')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        match path.last() {
            Some(&"v3") => {}
            Some(version) if is_version(version) => {
                let found = format!("the address is of version {version}");
                return Err(Error::NotCinder {
                    url: without_query(url),
                    found,
                });
            }
            Some(_) | None => path.push("v3"),
        }
        let mut versioned = url.clone();
        versioned.set_path(&format!("/{}", path.join("/")));
        versioned.set_query(None);
        Ok(Self {
            versioned,
            has_project,
        })
    }

    /// Where the versions are told: of version 3, then of the service.
    pub(super) fn version_documents(&self) -> [Url; 2] {
        let path = self.versioned.path().to_owned();
        let with = |path: &str| {
            let mut url = self.versioned.clone();
            url.set_path(path);
            url
        };
        [with(&format!("{path}/")), with(path.trim_end_matches("v3"))]
    }

    /// What requests are appended to. Below 3.67 Cinder wants the project's id in every address.
    pub(super) fn endpoint(&self, project_id: Option<&str>, highest_minor: u32) -> Url {
        let mut url = self.versioned.clone();
        if let Some(id) = project_id
            && (self.has_project || highest_minor < 67)
        {
            url.set_path(&format!("{}/{id}", self.versioned.path()));
        }
        url
    }
}

/// The version document of Cinder.
#[derive(Deserialize)]
pub(super) struct Versions {
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    id: String,
    /// The highest microversion.
    #[serde(default)]
    version: String,
}

impl Versions {
    /// The highest minor of version 3, if there is a version 3.
    pub(super) fn highest_minor(&self) -> Option<u32> {
        self.versions
            .iter()
            .find(|version| version.id.starts_with("v3"))
            .map(|version| {
                version
                    .version
                    .strip_prefix("3.")
                    .and_then(|minor| minor.parse().ok())
                    .unwrap_or(0)
            })
    }
}

/// The attachments API with `os-complete`: the floor.
const MINOR_FLOOR: u32 = 44;

/// An attachment's `mode`: used when offered.
const MINOR_MODE: u32 = 54;

/// The microversion to speak, chosen once for all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Microversion(u32);

impl Microversion {
    /// 3.54 if offered, else 3.44, else nothing.
    pub(super) fn choose(highest_minor: u32) -> Option<Self> {
        match highest_minor {
            MINOR_MODE.. => Some(Self(MINOR_MODE)),
            MINOR_FLOOR.. => Some(Self(MINOR_FLOOR)),
            _ => None,
        }
    }

    /// Whether a new attachment takes a `mode`.
    pub(super) fn has_mode(self) -> bool {
        self.0 >= MINOR_MODE
    }

    /// As the header wants it.
    pub(super) fn header(self) -> String {
        format!("volume 3.{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cinder::tests::config;

    fn catalog(entries: &[(&str, &str, &str, &str)]) -> Vec<Service> {
        entries
            .iter()
            .map(|(kind, interface, region, url)| Service {
                kind: (*kind).to_owned(),
                endpoints: vec![Endpoint {
                    interface: (*interface).to_owned(),
                    region_id: Some((*region).to_owned()),
                    region: None,
                    url: (*url).to_owned(),
                }],
            })
            .collect()
    }

    #[test]
    fn the_official_type_goes_before_its_aliases() {
        let catalog = catalog(&[
            ("volumev3", "public", "R", "http://c/v3/p"),
            ("volume", "public", "R", "http://c/v2/p"),
            ("block-storage", "admin", "R", "http://a/v3"),
            ("block-storage", "public", "R", "http://c/v3"),
        ]);
        assert_eq!(
            find(&catalog, &config("http://k")).unwrap().as_str(),
            "http://c/v3"
        );
        let old = &catalog[..2];
        assert_eq!(
            find(old, &config("http://k")).unwrap().as_str(),
            "http://c/v3/p"
        );
    }

    #[test]
    fn what_is_not_found_is_answered_with_what_there_is() {
        let entries = catalog(&[
            ("volumev3", "public", "east", "http://e/v3"),
            ("volumev3", "public", "west", "http://w/v3"),
            ("identity", "public", "east", "http://k"),
        ]);
        let mut config = config("http://k");
        assert_eq!(
            find(&entries, &config).unwrap_err().to_string(),
            "the catalog has no block storage in one region only; it has it in east, west; set region_name (OS_REGION_NAME)"
        );
        config.region = Some("west".into());
        assert_eq!(find(&entries, &config).unwrap().as_str(), "http://w/v3");
        config.region = Some("north".into());
        assert_eq!(
            find(&entries, &config).unwrap_err().to_string(),
            "the catalog has no block storage in region north with interface public; it has regions east, west \
             with interfaces public; set region_name (OS_REGION_NAME) to one of these"
        );
        let error = find(&entries[2..], &config).unwrap_err().to_string();
        assert!(
            error.contains("it has the types identity; is Cinder installed"),
            "{error}"
        );
        let error = find(&[], &config).unwrap_err().to_string();
        assert!(
            error.contains("set project_name (OS_PROJECT_NAME)"),
            "{error}"
        );
    }

    #[test]
    fn an_override_replaces_the_catalog() {
        let mut config = config("http://k");
        config.endpoint_override = Some("http://x:8776/v3".into());
        assert_eq!(find(&[], &config).unwrap().as_str(), "http://x:8776/v3");
        config.endpoint_override = Some("http://".into());
        assert!(matches!(find(&[], &config), Err(Error::NotCinder { .. })));
    }

    #[test]
    fn addresses_with_and_without_project_and_version_are_the_same_place() {
        for (url, versioned, has_project) in [
            ("http://c:8776/v3", "http://c:8776/v3", false),
            ("http://c:8776/v3/", "http://c:8776/v3", false),
            ("http://c:8776/v3/p1", "http://c:8776/v3", true),
            ("https://c/volume/v3/p1/", "https://c/volume/v3", true),
            ("http://c:8776/", "http://c:8776/v3", false),
            ("https://c/volume", "https://c/volume/v3", false),
        ] {
            let base = Base::of(&Url::parse(url).unwrap(), Some("p1")).unwrap();
            assert_eq!(
                (base.versioned.as_str(), base.has_project),
                (versioned, has_project),
                "{url}"
            );
        }
        let old = Base::of(&Url::parse("http://c/v2/p1").unwrap(), Some("p1"));
        assert!(matches!(old, Err(Error::NotCinder { .. })));
    }

    #[test]
    fn the_project_is_in_the_address_where_the_server_needs_it() {
        let base = Base::of(&Url::parse("http://c/v3").unwrap(), Some("p1")).unwrap();
        assert_eq!(base.endpoint(Some("p1"), 70).as_str(), "http://c/v3");
        assert_eq!(base.endpoint(Some("p1"), 66).as_str(), "http://c/v3/p1");
        assert_eq!(base.endpoint(None, 66).as_str(), "http://c/v3");
        let base = Base::of(&Url::parse("http://c/v3/p1").unwrap(), Some("p1")).unwrap();
        assert_eq!(base.endpoint(Some("p1"), 70).as_str(), "http://c/v3/p1");
        let [first, second] = base.version_documents();
        assert_eq!(
            (first.as_str(), second.as_str()),
            ("http://c/v3/", "http://c/")
        );
    }

    #[test]
    fn microversion_is_the_newest_that_is_of_use() {
        assert_eq!(
            Microversion::choose(71)
                .map(Microversion::header)
                .as_deref(),
            Some("volume 3.54")
        );
        assert_eq!(
            Microversion::choose(53)
                .map(Microversion::header)
                .as_deref(),
            Some("volume 3.44")
        );
        assert_eq!(Microversion::choose(43), None);
        let document = r#"{"versions": [{"id": "v2.0", "version": ""}, {"id": "v3.0", "status": "CURRENT", "version": "3.70", "min_version": "3.0"}]}"#;
        assert_eq!(
            serde_json::from_str::<Versions>(document)
                .unwrap()
                .highest_minor(),
            Some(70)
        );
        let document = r#"{"versions": [{"id": "v2.0", "version": ""}]}"#;
        assert_eq!(
            serde_json::from_str::<Versions>(document)
                .unwrap()
                .highest_minor(),
            None
        );
    }
}
