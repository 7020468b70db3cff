//! How fast a logical unit answers, with so many commands in flight, all from one thread:
//! `cargo run --release -p iscsi --example perf -- HOST[:PORT] TARGET LUN [--depth 32] [--bytes 4096] [--seconds 5]
//! [--sequential] [--write] [--json]`.
//!
//! It polls an `io::Nexus` by itself: no task, no channel, and the buffers go round. `--write` destroys what is there.

use std::error::Error;
use std::future::poll_fn;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use iscsi::client::probe;
use iscsi::io::{Command, Data, Event, Nexus, NexusParams};
use iscsi::proto::{Isid, SessionParams};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Status};

const USAGE: &str = "usage: perf HOST[:PORT] TARGET LUN [--depth N] [--bytes N] [--seconds N] [--sequential] [--write] [--json]";

/// What is asked for.
struct Options {
    portal: String,
    target: String,
    lun: u16,
    depth: usize,
    bytes: u32,
    seconds: u64,
    is_sequential: bool,
    is_write: bool,
    is_json: bool,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            portal: String::new(),
            target: String::new(),
            lun: 0,
            depth: 32,
            bytes: 4096,
            seconds: 5,
            is_sequential: false,
            is_write: false,
            is_json: false,
        };
        let mut places = Vec::new();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(USAGE);
            match argument.as_str() {
                "--depth" => options.depth = value()?.parse()?,
                "--bytes" => options.bytes = value()?.parse()?,
                "--seconds" => options.seconds = value()?.parse()?,
                "--sequential" => options.is_sequential = true,
                "--write" => options.is_write = true,
                "--json" => options.is_json = true,
                option if option.starts_with('-') => return Err(USAGE.into()),
                _ => places.push(argument),
            }
        }
        let [portal, target, lun] = places.as_slice() else {
            return Err(USAGE.into());
        };
        options.portal.clone_from(portal);
        options.target.clone_from(target);
        options.lun = lun.parse()?;
        if options.depth == 0 || options.seconds == 0 {
            return Err("--depth and --seconds are at least 1".into());
        }
        Ok(options)
    }
}

/// The commands in flight, and what is needed to make the next one.
struct Load {
    nexus: Nexus,
    lun: LunAddress,
    /// Of one command.
    blocks: Blocks,
    bytes: usize,
    /// Places a command can be at.
    places: u64,
    next: u64,
    is_sequential: bool,
    payload: Option<Bytes>,
    spare: Vec<BytesMut>,
    in_flight: usize,
}

impl Load {
    async fn open(options: &Options) -> Result<Self, Box<dyn Error>> {
        let name = "iqn.2026-11.org.cinder-nbd:perf".parse()?;
        let isid = Isid::random([0x70, 0x65, 0x72], 0);
        let mut session = SessionParams::new(options.portal.parse()?, name, isid);
        session.target_name = Some(options.target.parse()?);
        let lun = LunAddress::from_number(options.lun);
        let mut nexus = Nexus::open(NexusParams::new(session, lun)?).await?;
        let info = probe(&mut nexus, options.lun).await?;
        let block = info.capacity.block_length.bytes();
        if options.bytes == 0 || !options.bytes.is_multiple_of(block) {
            return Err(
                format!("--bytes must be a multiple of {block}, the unit's block size").into(),
            );
        }
        let blocks = options.bytes / block;
        let places = info.capacity.end.0 / u64::from(blocks);
        if places == 0 {
            return Err("--bytes is more than the unit has".into());
        }
        let bytes = usize::try_from(options.bytes)?;
        Ok(Self {
            nexus,
            lun,
            blocks: Blocks(blocks),
            bytes,
            places,
            next: 0,
            is_sequential: options.is_sequential,
            payload: options.is_write.then(|| Bytes::from(vec![0x5A; bytes])),
            spare: Vec::new(),
            in_flight: 0,
        })
    }

    /// One more command on its way.
    fn submit(&mut self) -> Result<(), &'static str> {
        // Weyl's sequence: as good as chance for a disk, and the same in every run.
        let step = if self.is_sequential {
            1
        } else {
            0x9E37_79B9_7F4A_7C15
        };
        self.next = self.next.wrapping_add(step);
        let lba = Lba(self.next % self.places * u64::from(self.blocks.0));
        let (cdb, data) = if let Some(payload) = &self.payload {
            (
                Cdb::write_16(lba, self.blocks, false),
                Data::Out(payload.clone()),
            )
        } else {
            let buffer = self.spare.pop();
            let buffer = buffer.unwrap_or_else(|| BytesMut::zeroed(self.bytes));
            (Cdb::read_16(lba, self.blocks), Data::In(buffer))
        };
        let lun = self.lun;
        let command = Command { lun, cdb, data };
        self.nexus
            .submit(0, command)
            .map_err(|_| "the session takes no more commands")?;
        self.in_flight += 1;
        Ok(())
    }

    /// Waits for one command.
    async fn complete(&mut self) -> Result<(), Box<dyn Error>> {
        loop {
            match poll_fn(|cx| self.nexus.poll_event(cx)).await {
                Event::Completed(done) if done.status == Status::GOOD => {
                    if let Data::In(buffer) = done.data {
                        self.spare.push(buffer);
                    }
                    self.in_flight -= 1;
                    return Ok(());
                }
                Event::Completed(done) => {
                    return Err(format!("the unit answered {}", done.status).into());
                }
                Event::Failed(failed) => return Err(failed.cause.into()),
                Event::Lost(cause) => return Err(cause.into()),
                Event::Reinstated(_) | Event::Examined(_) | Event::Expired(_) => {}
            }
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what the example is for"
)]
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("perf: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<String, Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    let mut load = Load::open(&options).await?;
    if options.depth > load.nexus.free_slots() {
        return Err(format!("--depth is at most {}", load.nexus.free_slots()).into());
    }
    let limit = Duration::from_secs(options.seconds);
    let begin = Instant::now();
    let mut count: u32 = 0;
    while begin.elapsed() < limit {
        while load.in_flight < options.depth {
            load.submit()?;
        }
        load.complete().await?;
        count += 1;
    }
    let seconds = begin.elapsed().as_secs_f64();
    while load.in_flight > 0 {
        load.complete().await?;
    }
    load.nexus.logout().await?;
    let iops = f64::from(count) / seconds;
    let mib_per_s = iops * f64::from(options.bytes) / f64::from(1 << 20);
    Ok(if options.is_json {
        format!(
            "{{\"count\":{count},\"seconds\":{seconds:.6},\"iops\":{iops:.1},\"mib_per_s\":{mib_per_s:.2}}}"
        )
    } else {
        format!("{count} commands in {seconds:.2} s: {iops:.0} IOPS, {mib_per_s:.1} MiB/s")
    })
}
