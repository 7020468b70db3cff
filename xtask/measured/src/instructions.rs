//! A fixed amount of work for valgrind to count: `instructions driver|lane read|write BYTES DEPTH COUNT`.
//!
//! `cargo xtask instructions` runs it twice with different counts; the difference is what the I/Os cost, without start
//! and login. Nothing in it depends on time: requests leave in bursts of `DEPTH`, and are answered in bursts.

#[path = "../../../benches/scripted/mod.rs"]
mod scripted;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let &[what, direction, bytes, depth, count] = words.as_slice() else {
        panic!("usage: instructions driver|lane read|write BYTES DEPTH COUNT")
    };
    let number = |word: &str| word.parse::<usize>().expect("a number");
    let bytes = bytes.parse().expect("a number of bytes");
    run(
        what,
        direction == "write",
        bytes,
        number(depth),
        number(count),
    );
}

fn run(what: &str, is_write: bool, bytes: u32, depth: usize, count: usize) {
    match what {
        "driver" => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.expect("a runtime can be built").block_on(async {
                let mut bed = scripted::driver::Bed::start(depth).await;
                for _ in 0..count / depth {
                    bed.burst(depth, bytes, is_write).await;
                }
            });
        }
        "lane" => {
            // How often a lane looks before it sleeps is time's matter, not that of the work.
            cinder_nbd::nbd::set_busy_poll(false);
            let mut bed = scripted::lane::Bed::start(depth);
            for _ in 0..count / depth {
                bed.burst(depth, bytes, is_write);
            }
        }
        other => panic!("no such work: {other}"),
    }
}
