//! An iSCSI target to try things against: `cargo run -p support --example target -- [ADDRESS] [MIB]`.
//! It prints its portal and serves until its input ends.

use std::io::Read;

use support::target::{Disk, Target};

#[expect(clippy::print_stdout, reason = "an example speaks to its caller")]
fn main() {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let mib: u64 = args.next().and_then(|text| text.parse().ok()).unwrap_or(64);
    let target = Target::builder()
        .listen(&address)
        .iqn("iqn.2026-11.test:disk")
        .lun(1, Disk::memory(mib << 20))
        .start_blocking();
    println!("{} iqn.2026-11.test:disk 1", target.portal());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    for violation in target.violations() {
        println!("violation: {violation}");
    }
}
