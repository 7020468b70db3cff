//! Each fault against a plain echo: what the client sees, what the echo saw, what was counted.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use super::*;

/// Any time that a healthy machine needs for a few bytes over loopback is far below.
const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_hours(1);

/// Takes one connection after the other, sends back what comes, and tells how each ended and after how many bytes.
struct Echo {
    address: String,
    ends: Receiver<(u64, Option<ErrorKind>)>,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (told, ends) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if told.send(echo(stream.unwrap())).is_err() {
                    return;
                }
            }
        });
        Self { address, ends }
    }

    fn end(&self) -> (u64, Option<ErrorKind>) {
        self.ends.recv_timeout(PATIENCE).unwrap()
    }
}

fn echo(mut stream: TcpStream) -> (u64, Option<ErrorKind>) {
    let mut buffer = [0; 4096];
    let mut carried = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (carried, None),
            Err(error) => return (carried, Some(error.kind())),
            Ok(count) => {
                carried += u64::try_from(count).unwrap();
                // Whoever does not read any more may still send.
                let _ = stream.write_all(&buffer[..count]);
            }
        }
    }
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.portal()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// There and back.
fn bounce(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    Ok(back)
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

#[test]
fn an_honest_proxy_carries_all_and_passes_the_end_on() {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let mut stream = connect(&proxy);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_be_bytes()[3]).collect();
    let mut writing = stream.try_clone().unwrap();
    let back = std::thread::scope(|scope| {
        scope.spawn(|| {
            writing.write_all(&bytes).unwrap();
            writing.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    });
    assert!(back == bytes, "the bytes came back different");
    assert_eq!(echo.end(), (3_000_000, None));
    let counts = proxy.counts();
    assert_eq!((counts.faults(), counts.connections), (0, 1));
    assert_eq!(
        (counts.to_target_bytes, counts.to_client_bytes),
        (3_000_000, 3_000_000)
    );
}

#[test]
fn a_kill_resets_both_peers_and_the_next_connection_stands() {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let mut stream = connect(&proxy);
    assert_eq!(bounce(&mut stream, b"hello").unwrap(), b"hello");
    proxy.make(Fault::Kill);
    let error = stream.read_exact(&mut [0]).unwrap_err();
    assert!(is_reset(&error), "{error}");
    assert_eq!(echo.end(), (5, Some(ErrorKind::ConnectionReset)));
    assert_eq!(bounce(&mut connect(&proxy), b"again").unwrap(), b"again");
    let counts = proxy.counts();
    assert_eq!(
        (counts.kills, counts.faults(), counts.connections),
        (1, 1, 2)
    );
}

#[test]
fn a_close_ends_the_stream_for_both_peers() {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let mut stream = connect(&proxy);
    assert_eq!(bounce(&mut stream, b"hello").unwrap(), b"hello");
    proxy.make(Fault::Close);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(echo.end(), (5, None));
    assert_eq!(proxy.counts().closes, 1);
}

#[test]
fn a_half_close_ends_one_way_and_leaves_the_other() {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let mut stream = connect(&proxy);
    assert_eq!(bounce(&mut stream, b"hello").unwrap(), b"hello");
    proxy.make(Fault::HalfClose(Way::ToClient));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // What we send still arrives: the hazard of a late write.
    stream.write_all(b"late").unwrap();
    assert!(proxy.wait_until(PATIENCE, |counts| counts.to_target_bytes == 9));
    drop(stream);
    assert_eq!(echo.end(), (9, None));

    let mut stream = connect(&proxy);
    assert_eq!(bounce(&mut stream, b"hello").unwrap(), b"hello");
    proxy.make(Fault::HalfClose(Way::ToTarget));
    // The echo sees the end, ends too, and that is passed on.
    assert_eq!(echo.end(), (5, None));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(proxy.counts().half_closes, 2);
}

#[test]
fn a_stall_holds_bytes_back_and_then_gives_all_of_them() {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let mut stream = connect(&proxy);
    assert_eq!(bounce(&mut stream, b"hello").unwrap(), b"hello");
    proxy.make(Fault::Stall(HOUR));
    stream.write_all(b"wait").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let waiting = stream.read(&mut [0; 4]).unwrap_err();
    assert_eq!(waiting.kind(), ErrorKind::WouldBlock);
    assert_eq!(proxy.counts().to_target_bytes, 5);
    // A stall of no length ends the first.
    proxy.make(Fault::Stall(Duration::ZERO));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"wait");
    assert_eq!(proxy.counts().stalls, 2);
}

#[test]
fn a_corruption_turns_one_bit_over() {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let mut stream = connect(&proxy);
    assert_eq!(bounce(&mut stream, b"hello").unwrap(), b"hello");
    for way in [Way::ToTarget, Way::ToClient] {
        proxy.make(Fault::Corrupt(way));
        let back = bounce(&mut stream, &[0x55; 64]).unwrap();
        let turned: u32 = back.iter().map(|byte| (byte ^ 0x55).count_ones()).sum();
        assert_eq!(turned, 1);
        assert_eq!(bounce(&mut stream, b"clean").unwrap(), b"clean");
    }
    assert_eq!(proxy.counts().corruptions, 2);
}

#[test]
fn a_refusal_kills_what_stands_and_listens_again_on_the_same_port() {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let mut stream = connect(&proxy);
    assert_eq!(bounce(&mut stream, b"hello").unwrap(), b"hello");
    proxy.make(Fault::Refuse(HOUR));
    let error = stream.read_exact(&mut [0]).unwrap_err();
    assert!(is_reset(&error), "{error}");
    assert_eq!(echo.end(), (5, Some(ErrorKind::ConnectionReset)));
    // The connection was killed by the thread that shuts the door; it may be a moment later.
    let deadline = Instant::now() + PATIENCE;
    while let Ok(stream) = TcpStream::connect(proxy.portal()) {
        drop(stream);
        assert!(Instant::now() < deadline, "the port is still open");
    }
    let refused = TcpStream::connect(proxy.portal()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    proxy.make(Fault::Refuse(Duration::ZERO));
    let mut again = loop {
        assert!(Instant::now() < deadline, "the port is still shut");
        if let Ok(stream) = TcpStream::connect(proxy.portal()) {
            break stream;
        }
    };
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(bounce(&mut again, b"back").unwrap(), b"back");
}

#[test]
fn a_target_that_is_not_there_is_counted_and_the_client_reset() {
    let nobody = hold(0).unwrap();
    let proxy = Proxy::start(&nobody.local_addr().unwrap().to_string());
    let error = connect(&proxy).read_exact(&mut [0]).unwrap_err();
    assert!(is_reset(&error), "{error}");
    assert_eq!(proxy.counts().unreachable, 1);
}

/// Single bytes in lockstep: then the peers share the ways alike in each run, and a seed gives the same run.
fn lockstep(seed: u64) -> (Counts, Vec<u64>) {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let plan = Plan::new(seed)
        .kinds(&[Kind::Kill, Kind::Close, Kind::Stall, Kind::Corrupt])
        .faults(25)
        .gap_bytes_max(300)
        .pause_max(Duration::from_millis(1));
    proxy.begin(plan);
    let mut lived = Vec::new();
    while proxy.counts().faults() < 25 {
        let mut stream = connect(&proxy);
        let mut bytes = 0;
        while bounce(&mut stream, b"x").is_ok() && proxy.counts().faults() < 25 {
            bytes += 1;
        }
        lived.push(bytes);
    }
    (proxy.counts(), lived)
}

#[test]
fn a_seed_gives_the_same_run_where_the_peers_do_the_same() {
    let (counts, lived) = lockstep(20_261_125);
    let (again, lived_again) = lockstep(20_261_125);
    assert_eq!(lived, lived_again);
    let kinds = |it: Counts| [it.kills, it.closes, it.stalls, it.corruptions];
    assert_eq!(kinds(counts), kinds(again));
    assert!(counts.kills > 0 && counts.closes > 0 && counts.stalls > 0 && counts.corruptions > 0);
    assert_ne!(lived, lockstep(20_261_126).1);
}

#[test]
fn a_paused_plan_makes_no_fault_and_goes_on_when_resumed() {
    let echo = Echo::start();
    let proxy = Proxy::start(&echo.address);
    let plan = Plan::new(1)
        .kinds(&[Kind::Kill])
        .gap_bytes_max(50)
        .faults(1);
    proxy.begin(plan);
    proxy.pause();
    let mut stream = connect(&proxy);
    assert_eq!(bounce(&mut stream, &[7; 1000]).unwrap(), [7; 1000]);
    assert_eq!(proxy.counts().faults(), 0);
    proxy.resume();
    assert!(bounce(&mut stream, &[7; 1000]).is_err());
    assert_eq!(bounce(&mut connect(&proxy), &[7; 1000]).unwrap(), [7; 1000]);
    assert_eq!(proxy.counts().faults(), 1);
}
