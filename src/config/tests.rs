//! Where credentials come from, and what is said when they are incomplete. No test changes the process's environment.

use std::collections::HashMap;

use super::cloud::Domain;
use super::*;

mod errors;

struct Shell {
    variables: HashMap<&'static str, String>,
    directory: tempfile::TempDir,
}

impl Shell {
    fn new(variables: &[(&'static str, &str)]) -> Self {
        let variables = variables
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        Self {
            variables,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn cloud(&self, file: &str) -> Result<Option<CloudConfig>, Error> {
        let file = self.write("cinder-nbd.toml", file);
        let variable = |name: &str| self.variables.get(name).cloned();
        let environment = Environment {
            variable: &variable,
            current_dir: Some(self.directory.path().to_owned()),
        };
        Config::load_from(Some(&file), &environment).map(|config| config.cloud)
    }

    fn some(&self, file: &str) -> CloudConfig {
        self.cloud(file).unwrap().expect("a cloud")
    }

    fn error(&self, file: &str) -> String {
        let text = self.cloud(file).unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }
}

const PASSWORD: &[(&str, &str)] = &[
    ("OS_AUTH_URL", "https://cloud.example:5000/v3"),
    ("OS_USERNAME", "demo"),
    ("OS_PASSWORD", "hunter2"),
    ("OS_PROJECT_NAME", "shop"),
    ("OS_USER_DOMAIN_NAME", "Default"),
    ("OS_PROJECT_DOMAIN_ID", "default"),
];

fn without(name: &str) -> Shell {
    Shell::new(
        &PASSWORD
            .iter()
            .copied()
            .filter(|(key, _)| *key != name)
            .collect::<Vec<_>>(),
    )
}

#[test]
fn nothing_anywhere_is_no_cloud() {
    assert!(Shell::new(&[]).cloud("").unwrap().is_none());
}

#[test]
fn openrc_gives_a_password_and_a_project() {
    let cloud = Shell::new(PASSWORD).some("");
    let Auth::Password {
        user,
        password,
        project,
    } = cloud.auth
    else {
        panic!("{:?}", cloud.auth)
    };
    assert_eq!(
        user,
        User::Name {
            name: "demo".into(),
            domain: Domain::Name("Default".into())
        }
    );
    assert_eq!(
        project,
        Project::Name {
            name: "shop".into(),
            domain: Domain::Id("default".into())
        }
    );
    assert_eq!(password.expose(), "hunter2");
    assert_eq!(cloud.interface, Interface::Public);
    assert!(!cloud.tls.insecure);
}

#[test]
fn secrets_do_not_print() {
    let cloud = Shell::new(PASSWORD).some("");
    let text = format!("{cloud:?}");
    assert!(
        !text.contains("hunter2") && text.contains("[secret]"),
        "{text}"
    );
}

#[test]
fn each_missing_variable_is_named_with_what_to_set() {
    for (absent, expected) in [
        (
            "OS_USERNAME",
            "the environment gives no user; set OS_USERNAME or OS_USER_ID",
        ),
        (
            "OS_PASSWORD",
            "the environment gives no password; set OS_PASSWORD",
        ),
        (
            "OS_PROJECT_NAME",
            "the environment gives no project to work in; set OS_PROJECT_NAME or OS_PROJECT_ID",
        ),
        (
            "OS_AUTH_URL",
            "the environment gives no address of Keystone; set OS_AUTH_URL",
        ),
    ] {
        assert_eq!(without(absent).error(""), expected);
    }
}

#[test]
fn absent_domains_are_the_default_one() {
    let cloud = without("OS_USER_DOMAIN_NAME").some("");
    let Auth::Password { user, .. } = cloud.auth else {
        panic!("{:?}", cloud.auth)
    };
    assert_eq!(
        user,
        User::Name {
            name: "demo".into(),
            domain: Domain::Id("default".into())
        }
    );
}

#[test]
fn application_credentials_need_no_auth_type() {
    let cloud = Shell::new(&[
        ("OS_AUTH_URL", "http://k/v3"),
        ("OS_APPLICATION_CREDENTIAL_ID", "abc"),
        ("OS_APPLICATION_CREDENTIAL_SECRET", "s3cret"),
    ])
    .some("");
    assert!(matches!(cloud.auth, Auth::ApplicationCredential { id, .. } if id == "abc"));
    let cloud = Shell::new(&[
        ("OS_AUTH_URL", "http://k/v3"),
        ("OS_APPLICATION_CREDENTIAL_NAME", "nbd"),
        ("OS_APPLICATION_CREDENTIAL_SECRET", "s3cret"),
        ("OS_USER_ID", "u1"),
    ])
    .some("");
    assert!(
        matches!(cloud.auth, Auth::NamedApplicationCredential { name, user: User::Id(_), .. } if name == "nbd")
    );
}

#[test]
fn clouds_yaml_is_found_and_secure_yaml_laid_over_it() {
    let shell = Shell::new(&[("OS_CLOUD", "lab")]);
    shell.write(
        "clouds.yaml",
        "clouds:\n  lab:\n    auth:\n      auth_url: https://lab:5000\n      username: u\n      \
         project_id: p1\n    region_name: west\n    verify: false\n    networks: [{name: x}]\n",
    );
    let error = shell.error("");
    assert!(error.contains("gives no password; set password"), "{error}");
    shell.write(
        "secure.yaml",
        "clouds:\n  lab:\n    auth:\n      password: 4711\n",
    );
    let cloud = shell.some("");
    let Auth::Password {
        password, project, ..
    } = cloud.auth
    else {
        panic!("{:?}", cloud.auth)
    };
    assert_eq!(
        (password.expose(), project),
        ("4711", Project::Id("p1".into()))
    );
    assert_eq!(cloud.region.as_deref(), Some("west"));
    assert!(cloud.tls.insecure);
}

#[test]
fn an_unknown_cloud_names_the_file_and_the_right_word() {
    let shell = Shell::new(&[("OS_CLOUD", "prodd")]);
    let error = shell.error("");
    assert!(
        error.starts_with("no cloud named `prodd` in ") && error.contains("/etc/openstack"),
        "{error}"
    );
    shell.write("clouds.yaml", "clouds:\n  prod: {}\n  lab: {}\n");
    assert!(shell.error("").ends_with("did you mean `prod`?"));
}

#[test]
fn a_clouds_file_that_is_named_must_be_there_and_be_yaml() {
    let shell = Shell::new(&[
        ("OS_CLOUD", "x"),
        ("OS_CLIENT_CONFIG_FILE", "/nonexistent/c.yaml"),
    ]);
    assert!(shell.error("").contains("OS_CLIENT_CONFIG_FILE names it"));
    let shell = Shell::new(&[("OS_CLOUD", "x")]);
    shell.write("clouds.yaml", "clouds: [\n  x: {\n");
    assert!(shell.error("").contains("clouds.yaml line "));
}

#[test]
fn the_files_cloud_is_used_when_the_environment_has_none() {
    let inline = "[cloud]\nauth_url = 'https://k/v3'\nusername = 'u'\npassword = 'p'\nproject_name = 'x'\n\
                  interface = 'internalURL'\ncacert = '/etc/ca.pem'\napi_timeout = 5\n";
    let cloud = Shell::new(&[]).some(inline);
    assert_eq!(cloud.auth_url, "https://k/v3");
    assert_eq!(cloud.interface, Interface::Internal);
    assert_eq!(cloud.tls.cacert.as_deref(), Some(Path::new("/etc/ca.pem")));
    assert_eq!(cloud.request_timeout.as_secs(), 5);
    // The environment as a whole goes first, and its parts are not mixed in.
    assert_eq!(
        Shell::new(PASSWORD).some(inline).auth_url,
        "https://cloud.example:5000/v3"
    );
    assert_eq!(without("OS_AUTH_URL").some(inline).auth_url, "https://k/v3");
}

#[test]
fn the_files_cloud_may_name_an_entry_of_clouds_yaml() {
    let shell = Shell::new(&[]);
    shell.write(
        "clouds.yaml",
        "clouds: {lab: {auth: {auth_url: 'http://k', token: t, project_id: p}}}",
    );
    assert!(matches!(
        shell.some("[cloud]\nname = 'lab'").auth,
        Auth::Token { .. }
    ));
}

#[test]
fn unknown_keys_and_wrong_values_of_the_files_cloud_are_refused() {
    let shell = Shell::new(&[]);
    let error = shell.error("[cloud]\nauth-url = 'x'");
    assert!(
        error.ends_with("unknown key `cloud.auth-url`; did you mean `auth_url`?"),
        "{error}"
    );
    let error = shell.error("[cloud]\n\"a\\nb\" = 'x'");
    assert!(error.contains(r"unknown key `cloud.a\nb`; "), "{error}");
    let base = "[cloud]\nauth_url = 'https://k'\ntoken = 't'\n";
    for (line, expected) in [
        (
            "interface = 'outside'",
            "interface must be public, internal or admin",
        ),
        (
            "auth_type = 'v3totp'",
            "auth_type `v3totp` is not supported; use password,",
        ),
        ("insecure = 'perhaps'", "insecure must be true or false"),
        ("api_timeout = 0", "api_timeout must be 1 to 3600 seconds"),
        (
            "block_storage_endpoint_override = 'cinder:8776'",
            "must begin with http:// or https://",
        ),
    ] {
        let error = shell.error(&format!("{base}{line}"));
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn an_empty_value_is_none() {
    let shell = Shell::new(&[]);
    for (key, expected) in [("auth_url", "set auth_url"), ("token", "gives no token")] {
        let mut text =
            "[cloud]\nauth_url = 'https://k'\ntoken = 't'\nauth_type = 'token'\n".to_owned();
        let begin = text.find(&format!("{key} = '")).unwrap();
        let end = begin + text[begin..].find('\n').unwrap();
        text.replace_range(begin..end, &format!("{key} = ''"));
        let error = shell.error(&text);
        assert!(error.contains(expected), "{key}: {error}");
    }
}

#[test]
fn without_keystone_only_cinders_address_is_needed() {
    let shell = Shell::new(&[
        ("OS_AUTH_TYPE", "none"),
        (
            "OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE",
            "http://127.0.0.1:8776/v3",
        ),
    ]);
    let cloud = shell.some("");
    assert!(matches!(cloud.auth, Auth::None { project } if project == "admin"));
    let error = Shell::new(&[]).error("[cloud]\nauth_type = 'none'");
    assert!(
        error.contains("set block_storage_endpoint_override"),
        "{error}"
    );
}

#[test]
fn static_targets_do_not_care_for_half_a_set_of_variables() {
    assert!(Config::load_local(None).is_ok());
}
