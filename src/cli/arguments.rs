//! What can be said on the command line. Names are a contract: scripts of others use them; add, do
//! not rename.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use iscsi::proto::recovery::ReplacementTimeout;
use iscsi::proto::{DigestPolicy, IscsiName, Portal};

mod volume;

pub use volume::{
    SnapshotCreate, SnapshotDelete, SnapshotList, SnapshotShow, SnapshotVerb, TransferAccept,
    TransferCreate, TransferDelete, TransferVerb, VolumeClone, VolumeCreate, VolumeDelete,
    VolumeExtend, VolumeFormat, VolumeShow, VolumeVerb,
};

use crate::volume::Elsewhere;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "cinder-nbd",
    version,
    about = "OpenStack Cinder volumes, or any iSCSI LUN, as local block devices and Docker volumes, without open-iscsi",
    propagate_version = true,
    max_term_width = 100,
    after_help = "Logs go to stderr; CINDER_NBD_LOG=debug shows more. Exit codes: 0 done, 1 failed, 2 wrong usage."
)]
pub struct Arguments {
    /// The configuration file [default: /etc/cinder-nbd/cinder-nbd.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the service: control socket, Docker plugin socket, block devices
    #[command(
        long_about = "Runs the service in the foreground: the control socket for the other verbs, the socket of the \
            Docker volume plugin, and the data path of every attached device.\n\nSIGINT takes everything off this host \
            and ends it; volumes still in use after 20 s are flushed and cut off. SIGTERM does the same, unless systemd \
            or 'cinder-nbd supervise' runs the service: then volumes in use are left to the kernel, and their I/O waits \
            for the next daemon. A daemon that starts serves again what one before it has left, also if that one was \
            killed.",
        after_help = "Example:\n  cinder-nbd daemon --config /etc/cinder-nbd/cinder-nbd.toml"
    )]
    Daemon,
    /// Run the service and start it again when it dies, where there is no systemd
    #[command(
        long_about = "Runs 'cinder-nbd daemon' and starts it again when it dies; holds what the next one needs to go on \
            at once with the I/O of attached devices. For hosts and containers without systemd; systemd does the same \
            with the unit that comes with cinder-nbd. SIGHUP restarts the daemon (after an upgrade: the new one), SIGTERM \
            and SIGINT are passed on and end it.",
        after_help = "Example:\n  cinder-nbd supervise --config /etc/cinder-nbd/cinder-nbd.toml"
    )]
    Supervise,
    /// Attach a volume as /dev/nbdX and print the device
    #[command(
        after_help = "Examples:\n  cinder-nbd attach data1\n  cinder-nbd attach --portal 192.0.2.10:3260 \
        --target iqn.2026-11.example:disk1 --lun 0 --chap-user me --chap-secret-file /root/chap"
    )]
    Attach(Attach),
    /// Detach a volume by name, UUID or device
    #[command(
        after_help = "Examples:\n  cinder-nbd detach data1\n  cinder-nbd detach /dev/nbd0\n  cinder-nbd detach --all"
    )]
    Detach(Detach),
    /// Look for what is left over of cinder-nbd, on this host and in the cloud, and remove it
    #[command(
        long_about = "Lists what is left over of this cinder-nbd: journal entries, attachments, reservations and tags in Cinder, \
            devices of the kernel, mounts, directories, addresses. With --repair it is removed. What may be another host's, \
            another daemon's or another program's is named and left alone, and so is what somebody uses. Works with and \
            without a running daemon.",
        after_help = "Examples:\n  cinder-nbd doctor\n  cinder-nbd doctor --repair --json"
    )]
    Doctor(Doctor),
    /// Serve a LUN as an NBD export; needs no root, no kernel module and no daemon
    #[command(
        long_about = "Serves a LUN as an NBD export, in the foreground, for any NBD client (qemu, nbdcopy, nbdkit, \
            nbd-client): on Unix sockets, on TCP (beyond loopback with TLS only), on sockets that systemd passes, or \
            for one client on standard input and output. Prints the export's URIs when clients can connect. Needs no \
            root, no kernel module and no daemon. SIGTERM or SIGINT: no new clients, requests in flight are answered, \
            caches flushed, logout.",
        after_help = "Examples:\n  cinder-nbd export --portal 192.0.2.10 --target iqn.2026-11.example:disk1 --lun 0 \
            --socket /tmp/disk1.sock\n  nbdinfo 'nbd+unix:///?socket=/tmp/disk1.sock'\n\n  cinder-nbd export --portal \
            192.0.2.10 --target iqn.2026-11.example:disk1 --lun 0 \\\n    --listen 0.0.0.0:10809 --tls-cert server.pem \
            --tls-key server.key --tls-client-ca ca.pem\n  nbdinfo 'nbds://server.example/?tls-certificates=/etc/pki/me'"
    )]
    Export(Export),
    /// List the targets behind a portal
    #[command(after_help = "Example:\n  cinder-nbd discover --portal 192.0.2.10:3260")]
    Discover(Discover),
    /// List the volumes that the daemon knows
    #[command(after_help = "Example:\n  cinder-nbd list --json")]
    List(Show),
    /// Show how the daemon is
    #[command(after_help = "Example:\n  cinder-nbd status")]
    Status(Show),
    /// Create, clone, extend, list, show and delete volumes in Cinder; their snapshots and transfers
    #[command(subcommand)]
    #[command(
        after_help = "The cloud is named as for the openstack command: OS_CLOUD with clouds.yaml, or the OS_* \
        variables, or [cloud] in the configuration file.\n\nExample:\n  cinder-nbd volume create data1 --size 10"
    )]
    Volume(VolumeVerb),
}

/// How facts are printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Show {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// Which LUN, and how to reach it. Flat: clap sees an optional part as given only by options of its
/// own.
#[derive(Debug, Args)]
pub struct TargetOptions {
    /// Address of the target; port 3260 unless given
    #[arg(long, value_name = "HOST:PORT", requires_all = ["target", "lun"])]
    pub portal: Portal,
    /// Name of the target
    #[arg(long, value_name = "IQN", requires_all = ["portal", "lun"])]
    pub target: IscsiName,
    /// Number of the logical unit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..16384), requires_all = ["portal", "target"])]
    pub lun: u16,
    /// Name for CHAP, when the target asks for it
    #[arg(long, value_name = "USER", requires = "chap_secret_file")]
    pub chap_user: Option<String>,
    /// File with the CHAP secret
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub chap_secret_file: Option<PathBuf>,
}

/// `attach`.
// clap would show the options of a target as required beside an optional volume: it is one or the other.
#[derive(Debug, Args)]
#[command(
    override_usage = "cinder-nbd attach [OPTIONS] <VOLUME>\n       cinder-nbd attach [OPTIONS] --portal <HOST:PORT> --target <IQN> --lun <N>"
)]
pub struct Attach {
    /// Name or UUID of a Cinder volume
    #[arg(required_unless_present = "portal", conflicts_with_all = ["portal", "target", "lun"])]
    pub volume: Option<String>,
    /// A LUN that no cloud knows of.
    #[command(flatten)]
    pub target: Option<TargetOptions>,
    /// Attach without the right to write
    #[arg(long)]
    pub read_only: bool,
    /// Attach beside other hosts that write, for what is made to be shared; needs a multiattach volume
    #[arg(long, conflicts_with_all = ["portal", "target", "lun", "read_only"])]
    pub raw: bool,
    /// If it is attached elsewhere: refuse, wait=SECONDS, take (fenced first) or take-without-fence [default: the
    /// volume's, else the configuration's, else refuse]
    #[arg(long, value_name = "ANSWER", conflicts_with_all = ["portal", "target", "lun"])]
    pub elsewhere: Option<Elsewhere>,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// Name or UUID of the volume, or its device
    #[arg(value_name = "VOLUME|DEVICE", required_unless_present = "all")]
    pub volume: Option<String>,
    /// Everything that is attached, before a stop for good
    #[arg(long, conflicts_with = "volume")]
    pub all: bool,
    /// Even if Docker is counted as using it, or its target takes no more writes and what is
    /// unwritten is lost; what the kernel knows as in use is never detached
    #[arg(long)]
    pub force: bool,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Remove what is left over
    #[arg(long)]
    pub repair: bool,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Which LUN.
    #[command(flatten)]
    pub target: TargetOptions,
    /// Where to be served.
    #[command(flatten)]
    pub place: ExportPlace,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// The export's name; clients find it by this and by the empty name
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub export_name: String,
    /// What clients are told of it, in a line for people
    #[arg(long, value_name = "TEXT")]
    pub export_description: Option<String>,
    /// Connections at once, each with a session of its own; further ones are closed
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "stdio")]
    pub connections: u16,
    /// Whom to trust.
    #[command(flatten)]
    pub tls: TlsOptions,
    /// How the session is to be.
    #[command(flatten)]
    pub session: SessionOptions,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

/// Where an export is served: at least one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct ExportPlace {
    /// Listen on this Unix socket, for its owner alone
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Listen on TCP, port 0 for any; beyond loopback with TLS only; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Vec<String>,
    /// Listen on the sockets that systemd, or who does as it does, has passed (`LISTEN_FDS`)
    #[arg(long)]
    pub socket_activation: bool,
    /// Serve one client on standard input and output: one stream socket, or two pipes
    #[arg(long, conflicts_with_all = ["socket", "listen", "socket_activation", "json"])]
    pub stdio: bool,
}

/// TLS of an export.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsOptions {
    /// The server's certificate and those up to its authority, PEM; with it no client is served without TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Serve only clients with a certificate of this authority, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
}

/// How a session is to be, beyond where it goes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Session")]
pub struct SessionOptions {
    /// How long I/O waits for a target that is away before it fails: seconds, 0 for not at all, or
    /// `never` [default: the configuration's, else 120]
    #[arg(long, value_name = "SECONDS")]
    pub replacement_timeout: Option<ReplacementTimeout>,
    /// CRC32C behind each header: none, prefer or require [default: the configuration's, else none]
    #[arg(long, value_name = "POLICY")]
    pub header_digest: Option<DigestPolicy>,
    /// CRC32C behind all data: none, prefer or require [default: the configuration's, else none]
    #[arg(long, value_name = "POLICY")]
    pub data_digest: Option<DigestPolicy>,
    /// Name with which the target has to prove itself (mutual CHAP)
    #[arg(long, value_name = "USER", requires_all = ["mutual_chap_secret_file", "chap_user"])]
    pub mutual_chap_user: Option<String>,
    /// File with the target's secret
    #[arg(long, value_name = "FILE", requires = "mutual_chap_user")]
    pub mutual_chap_secret_file: Option<PathBuf>,
    /// A further portal of the same target, for when the first is away; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    pub more_portal: Vec<Portal>,
}

/// `discover`.
#[derive(Debug, Args)]
pub struct Discover {
    /// Address of the target; port 3260 unless given
    #[arg(long, value_name = "HOST:PORT")]
    pub portal: Portal,
    /// Name for CHAP, when the target asks for it
    #[arg(long, value_name = "USER", requires = "chap_secret_file")]
    pub chap_user: Option<String>,
    /// File with the CHAP secret
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub chap_secret_file: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub show: Show,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parsed(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("cinder-nbd").chain(words.split_whitespace()))
    }

    #[test]
    fn the_definitions_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_of_the_contract_is_taken() {
        let target = "--portal 127.0.0.1:3260 --target iqn.2026-11.example:a --lun 0";
        for words in [
            "daemon".to_owned(),
            "daemon --config /etc/x".to_owned(),
            "attach v1".to_owned(),
            format!("attach {target}"),
            format!("attach {target} --chap-user u --chap-secret-file f --json"),
            "detach v1".to_owned(),
            "detach /dev/nbd0".to_owned(),
            "detach --all --force".to_owned(),
            "supervise --config /etc/x".to_owned(),
            format!("export {target} --socket /tmp/s --read-only"),
            format!("export {target} --listen 127.0.0.1:0 --listen [::1]:0 --connections 4"),
            format!("export {target} --stdio --export-name disk1"),
            format!(
                "export {target} --socket-activation --tls-cert c --tls-key k --tls-client-ca a"
            ),
            "discover --portal localhost".to_owned(),
            "list --json".to_owned(),
            "status --json".to_owned(),
            "attach v1 --raw --elsewhere wait=30 --json".to_owned(),
            "attach v1 --elsewhere take-without-fence".to_owned(),
            "doctor".to_owned(),
            "doctor --repair --json".to_owned(),
            "volume create v1 --size 1".to_owned(),
            "volume list --json".to_owned(),
            "volume show v1 --json".to_owned(),
            "volume delete v1".to_owned(),
            "volume clone v1 v2 --size 3".to_owned(),
            "volume extend v1 20GiB --json".to_owned(),
            "volume snapshot create v1 s1 --freeze-limit 5".to_owned(),
            "volume snapshot create v1 s1 --no-freeze --description x".to_owned(),
            "volume snapshot list".to_owned(),
            "volume snapshot list v1 --json".to_owned(),
            "volume snapshot show s1".to_owned(),
            "volume snapshot delete s1".to_owned(),
            "volume transfer create v1 --name t1".to_owned(),
            "volume transfer list --json".to_owned(),
            "volume transfer accept t1 --auth-key-file -".to_owned(),
            "volume transfer delete t1".to_owned(),
        ] {
            assert!(
                parsed(&words).is_ok(),
                "{words}: {}",
                parsed(&words).unwrap_err()
            );
        }
    }

    #[test]
    fn half_a_target_and_two_volumes_are_refused() {
        let target = "--portal 127.0.0.1 --target iqn.2026-11.example:a --lun 0";
        for words in [
            String::new(),
            "attach".to_owned(),
            "attach --portal 127.0.0.1".to_owned(),
            "attach --portal 127.0.0.1 --lun 0".to_owned(),
            "attach --target iqn.2026-11.example:a --lun 0".to_owned(),
            format!("attach v1 {target}"),
            format!("attach {target} --chap-user u"),
            format!("attach {target} --chap-secret-file f"),
            format!("export {target}"),
            "export --socket /tmp/s".to_owned(),
            "export --portal 127.0.0.1 --target iqn.2026-11.example:a --lun 16384 --socket /tmp/s"
                .to_owned(),
            format!("export {target} --connections 4"),
            format!("export {target} --stdio --socket /tmp/s"),
            format!("export {target} --stdio --json"),
            format!("export {target} --listen 127.0.0.1:0 --tls-cert c"),
            format!("export {target} --listen 127.0.0.1:0 --tls-client-ca c"),
            format!("export {target} --socket /tmp/s --connections 0"),
            "discover".to_owned(),
            "detach".to_owned(),
            "detach v1 --all".to_owned(),
            "attach v1 --elsewhere steal".to_owned(),
            "attach v1 --raw --read-only".to_owned(),
            "doctor v1".to_owned(),
            "supervise daemon".to_owned(),
            "volume create v1 --size 0".to_owned(),
            "volume create v1 --snapshot a --image b".to_owned(),
            "volume extend v1".to_owned(),
            "volume extend v1 0".to_owned(),
            "volume snapshot create v1 s1 --no-freeze --freeze-limit 5".to_owned(),
            "volume snapshot create v1 s1 --freeze-limit 0".to_owned(),
            "volume transfer accept t1".to_owned(),
            "frobnicate".to_owned(),
        ] {
            let kind = parsed(&words).map(|_| ()).unwrap_err().kind();
            assert!(!matches!(kind, ErrorKind::DisplayVersion), "{words}");
        }
    }

    #[test]
    fn a_target_is_seen() {
        let words = "attach --portal 127.0.0.1 --target iqn.2026-11.example:a --lun 3 --chap-user u --chap-secret-file f";
        let Verb::Attach(attach) = parsed(words).unwrap().verb else {
            panic!("not attach")
        };
        let target = attach.target.expect("a target was given");
        assert_eq!((target.lun, target.chap_user.as_deref()), (3, Some("u")));
        assert!(attach.volume.is_none());
    }

    #[test]
    fn a_volume_alone_has_no_target() {
        let Verb::Attach(attach) = parsed("attach v1").unwrap().verb else {
            panic!("not attach")
        };
        assert!(attach.target.is_none());
        assert_eq!(attach.volume.as_deref(), Some("v1"));
    }
}
