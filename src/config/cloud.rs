//! Which cloud, and how to authenticate: one set of keys from the environment, clouds.yaml or the file's `[cloud]`.
//!
//! Source: `openstacksdk`, "Configuring `OpenStack` SDK Applications"; names of keys and variables are those.
//!
//! Invariants:
//! 1. One source gives all: a password from one place never goes to an address from another.
//! 2. A `CloudConfig` is complete: what its method of authentication needs is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iscsi::proto::Secret;

use super::error::printed;
use super::file::{CloudSection, one_line};
use super::{Environment, Error, clouds_yaml, nearest::advice};

/// Which cloud, and how to authenticate: made from `OS_*`, clouds.yaml (`OS_CLOUD`) or the file's `[cloud]`.
#[derive(Clone, Debug)]
pub struct CloudConfig {
    /// Where the settings stand, in words for errors.
    pub place: String,
    /// Keystone's address as written; empty only with `Auth::None`.
    pub auth_url: String,
    /// Method and credentials.
    pub auth: Auth,
    /// Region; needed only where the catalog has several.
    pub region: Option<String>,
    /// Which of a service's addresses.
    pub interface: Interface,
    /// Cinder's address, instead of the catalog's.
    pub endpoint_override: Option<String>,
    /// How servers prove themselves.
    pub tls: Tls,
    /// For an ordinary request, from connect to the last byte. Default 30 s.
    pub request_timeout: Duration,
}

/// Method and credentials.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Auth {
    /// User and password, scoped to a project.
    Password {
        /// Who.
        user: User,
        /// The password.
        password: Secret,
        /// Where.
        project: Project,
    },
    /// An application credential by its id: it has its own user and project.
    ApplicationCredential {
        /// Its id.
        id: String,
        /// Its secret.
        secret: Secret,
    },
    /// An application credential by name and owner.
    NamedApplicationCredential {
        /// Its name.
        name: String,
        /// Its owner.
        user: User,
        /// Its secret.
        secret: Secret,
    },
    /// A token made elsewhere; cannot be renewed.
    Token {
        /// The token.
        token: Secret,
        /// Where; `None` keeps the token's own scope.
        project: Option<Project>,
    },
    /// A Cinder with `auth_strategy = noauth`, without Keystone.
    None {
        /// The project's id in its addresses.
        project: String,
    },
}

/// A user by id, or by name within a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// By id.
    Id(String),
    /// By name.
    Name {
        /// The name.
        name: String,
        /// Its domain.
        domain: Domain,
    },
}

/// A project by id, or by name within a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Project {
    /// By id.
    Id(String),
    /// By name.
    Name {
        /// The name.
        name: String,
        /// Its domain.
        domain: Domain,
    },
}

/// A domain by id or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// By id.
    Id(String),
    /// By name.
    Name(String),
}

/// Which of a service's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// For users.
    #[default]
    Public,
    /// For the cloud's own network.
    Internal,
    /// For operators.
    Admin,
}

impl Interface {
    /// As the catalog spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        }
    }
}

/// How servers prove themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities to trust instead of the system's.
    pub cacert: Option<PathBuf>,
    /// Any certificate is taken: for tests only, and warned about.
    pub insecure: bool,
    /// How we prove ourselves to a server that asks for it.
    pub client: Option<ClientCertificate>,
}

/// A certificate of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file with the certificate, and those up to its authority.
    pub cert: PathBuf,
    /// PEM file with its key; none when `cert` has it too.
    pub key: Option<PathBuf>,
}

/// The first source that is there; `None` when there is none.
pub(super) fn find(
    environment: &Environment<'_>,
    section: Option<&CloudSection>,
) -> Result<Option<CloudConfig>, Error> {
    if let Some(name) = environment.get("OS_CLOUD") {
        return clouds_yaml::load(&name, environment)?.cloud().map(Some);
    }
    let keys = Keys::of_environment(environment);
    if keys.has("auth_url") || (keys.is_without_keystone() && keys.has(OVERRIDE)) {
        return keys.cloud().map(Some);
    }
    if let Some(section) = section {
        let keys = Keys::of_section(section)?;
        return match keys.values.get("name") {
            Some(name) => clouds_yaml::load(name.expose(), environment)?
                .cloud()
                .map(Some),
            None => keys.cloud().map(Some),
        };
    }
    if keys.has("password") || keys.has("application_credential_secret") || keys.has("token") {
        return Err(keys.missing("address of Keystone", &["auth_url"]));
    }
    Ok(None)
}

/// Cinder's address in clouds.yaml.
const OVERRIDE: &str = "block_storage_endpoint_override";

/// The keys read here, with the variables that mean the same.
const KEYS: &[(&str, &[&str])] = &[
    ("auth_url", &["OS_AUTH_URL"]),
    ("auth_type", &["OS_AUTH_TYPE"]),
    ("username", &["OS_USERNAME"]),
    ("user_id", &["OS_USER_ID"]),
    ("user_domain_name", &["OS_USER_DOMAIN_NAME"]),
    ("user_domain_id", &["OS_USER_DOMAIN_ID"]),
    ("password", &["OS_PASSWORD"]),
    ("project_name", &["OS_PROJECT_NAME", "OS_TENANT_NAME"]),
    ("project_id", &["OS_PROJECT_ID", "OS_TENANT_ID"]),
    ("project_domain_name", &["OS_PROJECT_DOMAIN_NAME"]),
    ("project_domain_id", &["OS_PROJECT_DOMAIN_ID"]),
    (
        "default_domain",
        &["OS_DEFAULT_DOMAIN", "OS_DEFAULT_DOMAIN_ID"],
    ),
    (
        "application_credential_id",
        &["OS_APPLICATION_CREDENTIAL_ID"],
    ),
    (
        "application_credential_name",
        &["OS_APPLICATION_CREDENTIAL_NAME"],
    ),
    (
        "application_credential_secret",
        &["OS_APPLICATION_CREDENTIAL_SECRET"],
    ),
    ("token", &["OS_TOKEN", "OS_AUTH_TOKEN"]),
    ("region_name", &["OS_REGION_NAME"]),
    ("interface", &["OS_INTERFACE", "OS_ENDPOINT_TYPE"]),
    ("cacert", &["OS_CACERT"]),
    ("cert", &["OS_CERT"]),
    ("key", &["OS_KEY"]),
    ("verify", &["OS_VERIFY"]),
    ("insecure", &["OS_INSECURE"]),
    (
        OVERRIDE,
        &[
            "OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE",
            "OS_VOLUME_ENDPOINT_OVERRIDE",
            "OS_ENDPOINT",
        ],
    ),
    ("api_timeout", &["OS_API_TIMEOUT"]),
];

/// Values by clouds.yaml's names, and how to speak of them.
pub(super) struct Keys {
    pub(super) place: String,
    pub(super) spelling: Spelling,
    /// All as secrets: some are, and none need be printed.
    pub(super) values: BTreeMap<String, Secret>,
}

/// How a key is written where these came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `OS_PASSWORD`.
    Variable,
    /// `password`.
    Key,
}

impl Keys {
    fn of_environment(environment: &Environment<'_>) -> Self {
        let values = KEYS
            .iter()
            .filter_map(|(key, variables)| {
                let value = variables
                    .iter()
                    .find_map(|variable| environment.get(variable))?;
                Some(((*key).to_owned(), Secret::new(value)))
            })
            .collect();
        Self {
            place: "the environment".to_owned(),
            spelling: Spelling::Variable,
            values,
        }
    }

    fn of_section(section: &CloudSection) -> Result<Self, Error> {
        let mut values = BTreeMap::new();
        flatten_toml(&section.table, &section.path, &mut values)?;
        let keys = Self {
            place: format!("[cloud] in {}", section.path.display()),
            spelling: Spelling::Key,
            values,
        };
        if keys.has_secret() {
            warn_if_readable_by_all(&section.path);
        }
        Ok(keys)
    }

    /// Whether a secret stands in it.
    pub(super) fn has_secret(&self) -> bool {
        ["password", "application_credential_secret", "token"]
            .iter()
            .any(|key| self.has(key))
    }

    fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// An empty one is none, as among the variables.
    fn value(&self, key: &str) -> Option<&Secret> {
        self.values
            .get(key)
            .filter(|value| !value.expose().is_empty())
    }

    fn text(&self, key: &str) -> Option<String> {
        self.value(key).map(|value| value.expose().to_owned())
    }

    fn is_without_keystone(&self) -> bool {
        self.text("auth_type")
            .is_some_and(|kind| ["none", "noauth"].contains(&kind.as_str()))
    }

    /// The settings, checked.
    pub(super) fn cloud(&self) -> Result<CloudConfig, Error> {
        let auth = self.auth()?;
        let endpoint_override = self.text(OVERRIDE);
        let auth_url = if matches!(auth, Auth::None { .. }) {
            if endpoint_override.is_none() {
                return Err(
                    self.missing("address of Cinder, which auth_type none needs", &[OVERRIDE])
                );
            }
            String::new()
        } else {
            self.need("address of Keystone", "auth_url")?
        };
        for (key, url) in [
            ("auth_url", Some(&auth_url)),
            (OVERRIDE, endpoint_override.as_ref()),
        ] {
            if let Some(url) = url.filter(|url| !url.is_empty())
                && !(url.starts_with("http://") || url.starts_with("https://"))
            {
                return Err(self.wrong(key, "must begin with http:// or https://"));
            }
        }
        Ok(CloudConfig {
            place: self.place.clone(),
            auth_url,
            auth,
            region: self.text("region_name"),
            interface: self.interface()?,
            endpoint_override,
            tls: Tls {
                cacert: self.text("cacert").map(PathBuf::from),
                insecure: self.insecure()?,
                client: self.client_certificate()?,
            },
            request_timeout: self.request_timeout()?,
        })
    }

    fn auth(&self) -> Result<Auth, Error> {
        let kind = self.text("auth_type").unwrap_or_else(|| {
            let by_credential = ["application_credential_id", "application_credential_name"];
            if by_credential.iter().any(|key| self.has(key)) {
                "v3applicationcredential".to_owned()
            } else if self.has("token") && !self.has("password") {
                "token".to_owned()
            } else {
                "password".to_owned()
            }
        });
        match kind.as_str() {
            "password" | "v3password" => Ok(Auth::Password {
                user: self.user()?,
                password: self.need_secret("password", "password")?,
                project: self.project().ok_or_else(|| {
                    self.missing("project to work in", &["project_name", "project_id"])
                })?,
            }),
            "v3applicationcredential" | "applicationcredential" | "application_credential" => {
                let secret = self.need_secret(
                    "secret of the application credential",
                    "application_credential_secret",
                )?;
                if let Some(id) = self.text("application_credential_id") {
                    return Ok(Auth::ApplicationCredential { id, secret });
                }
                let name = self.text("application_credential_name").ok_or_else(|| {
                    self.missing(
                        "application credential",
                        &["application_credential_id", "application_credential_name"],
                    )
                })?;
                Ok(Auth::NamedApplicationCredential {
                    name,
                    user: self.user()?,
                    secret,
                })
            }
            "token" | "v3token" => Ok(Auth::Token {
                token: self.need_secret("token", "token")?,
                project: self.project(),
            }),
            "none" | "noauth" => {
                let project = self
                    .text("project_id")
                    .or_else(|| self.text("project_name"));
                Ok(Auth::None {
                    project: project.unwrap_or_else(|| "admin".to_owned()),
                })
            }
            other => Err(self.wrong(
                "auth_type",
                &format!(
                    "`{}` is not supported; use password, v3applicationcredential, token or none",
                    printed(other)
                ),
            )),
        }
    }

    fn user(&self) -> Result<User, Error> {
        if let Some(id) = self.text("user_id") {
            return Ok(User::Id(id));
        }
        let name = self
            .text("username")
            .ok_or_else(|| self.missing("user", &["username", "user_id"]))?;
        Ok(User::Name {
            name,
            domain: self.domain("user_domain_name", "user_domain_id"),
        })
    }

    fn project(&self) -> Option<Project> {
        if let Some(id) = self.text("project_id") {
            return Some(Project::Id(id));
        }
        let domain = self.domain("project_domain_name", "project_domain_id");
        self.text("project_name")
            .map(|name| Project::Name { name, domain })
    }

    /// The cloud's own clients take the domain with the id `default` when none is named.
    fn domain(&self, name: &str, id: &str) -> Domain {
        self.text(id)
            .map(Domain::Id)
            .or_else(|| self.text(name).map(Domain::Name))
            .unwrap_or_else(|| {
                Domain::Id(
                    self.text("default_domain")
                        .unwrap_or_else(|| "default".to_owned()),
                )
            })
    }

    fn interface(&self) -> Result<Interface, Error> {
        let Some(word) = self.text("interface") else {
            return Ok(Interface::default());
        };
        match word.trim_end_matches("URL") {
            "public" => Ok(Interface::Public),
            "internal" => Ok(Interface::Internal),
            "admin" => Ok(Interface::Admin),
            _ => Err(self.wrong("interface", "must be public, internal or admin")),
        }
    }

    fn client_certificate(&self) -> Result<Option<ClientCertificate>, Error> {
        let path = |key| self.text(key).map(PathBuf::from);
        match (path("cert"), path("key")) {
            (Some(cert), key) => Ok(Some(ClientCertificate { cert, key })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(self.missing("certificate of the key", &["cert"])),
        }
    }

    fn insecure(&self) -> Result<bool, Error> {
        let insecure = self.switch("insecure")?.unwrap_or(false);
        let verify = self.switch("verify")?.unwrap_or(true);
        Ok(insecure || !verify)
    }

    fn switch(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(word) = self.text(key) else {
            return Ok(None);
        };
        match word.to_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Some(true)),
            "false" | "0" | "no" | "off" => Ok(Some(false)),
            _ => Err(self.wrong(key, "must be true or false")),
        }
    }

    fn request_timeout(&self) -> Result<Duration, Error> {
        // 30 s: Cinder's slowest ordinary answers (a list of thousands of volumes) take a few seconds.
        let Some(text) = self.text("api_timeout") else {
            return Ok(Duration::from_secs(30));
        };
        text.parse::<u64>()
            .ok()
            .filter(|seconds| (1..=3600).contains(seconds))
            .map(Duration::from_secs)
            .ok_or_else(|| self.wrong("api_timeout", "must be 1 to 3600 seconds"))
    }

    fn need(&self, what: &'static str, key: &str) -> Result<String, Error> {
        self.text(key).ok_or_else(|| self.missing(what, &[key]))
    }

    fn need_secret(&self, what: &'static str, key: &str) -> Result<Secret, Error> {
        self.value(key)
            .cloned()
            .ok_or_else(|| self.missing(what, &[key]))
    }

    fn missing(&self, what: &'static str, keys: &[&str]) -> Error {
        let words: Vec<String> = keys.iter().map(|key| self.spell(key)).collect();
        Error::Missing {
            place: self.place.clone(),
            what,
            remedy: words.join(" or "),
        }
    }

    fn wrong(&self, key: &str, problem: &str) -> Error {
        Error::Value {
            place: self.place.clone(),
            key: self.spell(key),
            problem: problem.to_owned(),
        }
    }

    fn spell(&self, key: &str) -> String {
        let variable = KEYS
            .iter()
            .find(|(known, _)| *known == key)
            .and_then(|(_, names)| names.first());
        match (self.spelling, variable) {
            (Spelling::Variable, Some(variable)) => (*variable).to_owned(),
            (Spelling::Variable | Spelling::Key, _) => key.to_owned(),
        }
    }
}

/// `[cloud]` and `[cloud.auth]` as one; unknown keys are refused.
fn flatten_toml(
    table: &toml::Table,
    path: &Path,
    values: &mut BTreeMap<String, Secret>,
) -> Result<(), Error> {
    for (key, value) in table {
        if let (Some(inner), "auth") = (value.as_table(), key.as_str()) {
            flatten_toml(inner, path, values)?;
            continue;
        }
        let known: Vec<&str> = KEYS
            .iter()
            .map(|(key, _)| *key)
            .chain(["name", "auth"])
            .collect();
        if !known.contains(&key.as_str()) {
            return Err(Error::UnknownKey {
                path: path.to_owned(),
                line: None,
                key: format!("cloud.{}", printed(key)),
                advice: advice(key, &known),
            });
        }
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Boolean(flag) => flag.to_string(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => {
                return Err(Error::Value {
                    place: path.display().to_string(),
                    key: format!("cloud.{}", printed(key)),
                    problem: "must be a text; put it in quotes".to_owned(),
                });
            }
        };
        if !text.is_empty() {
            values.insert(key.clone(), Secret::new(text));
        }
    }
    Ok(())
}

/// A file with secrets that everybody can read is worth a word, not a refusal: containers often have nothing else.
pub(super) fn warn_if_readable_by_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;

    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.permissions().mode() & 0o004 != 0
    {
        tracing::warn!(
            path = %one_line(&path.display().to_string()),
            "this file holds a secret and every user can read it: chmod 600"
        );
    }
}
