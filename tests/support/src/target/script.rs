//! Scripted connections: the test itself plays the target, PDU by PDU. The tool for login, CHAP, and whatever the
//! honest target would not say.
//!
//! Nothing is answered by itself. `send` numbers a PDU as an honest target would; `send_raw` leaves it as it is.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::disk::Disk;
use super::keys::{Negotiation, Settings};
use super::pdu::{BHS_BYTES, FINAL, NO_TAG, Pdu, at, op};
use super::scsi::{self, Plan};

/// A portal whose connections are played by the test.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use support::target::{Pdu, Script};
///
/// let script = Script::listen().await;
/// let initiator = tokio::net::TcpStream::connect(script.address()).await.unwrap();
/// let mut peer = script.accept().await;
/// peer.send_raw(&Pdu::ping(7)).await;
/// # drop(initiator);
/// # });
/// ```
#[derive(Debug)]
pub struct Script {
    listener: TcpListener,
    address: SocketAddr,
}

impl Script {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If loopback cannot be listened on.
    pub async fn listen() -> Self {
        Self::listen_at("127.0.0.1:0").await
    }

    /// Listens on an address.
    ///
    /// # Panics
    /// If it cannot be listened on.
    pub async fn listen_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("can listen");
        let address = listener.local_addr().expect("a listener has an address");
        Self { listener, address }
    }

    /// `ADDRESS:PORT`.
    pub fn portal(&self) -> String {
        self.address.to_string()
    }

    /// The portal as a socket address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection.
    ///
    /// # Panics
    /// If none comes in 10 s.
    pub async fn accept(&self) -> Peer {
        let accepted = tokio::time::timeout(WAIT, self.listener.accept()).await;
        let (stream, _) = accepted
            .expect("the initiator connects")
            .expect("a connection can be accepted");
        stream.set_nodelay(true).expect("a socket option");
        Peer {
            stream,
            stat_sn: 0x1000,
            exp_cmd_sn: 0,
            window: 32,
            header_digest: false,
            data_digest: false,
        }
    }
}

/// The target's end of a connection, and what an honest target would count there.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// The next `StatSN`.
    pub stat_sn: u32,
    /// The next `CmdSN` expected; follows what is received.
    pub exp_cmd_sn: u32,
    /// `MaxCmdSN` is told as `exp_cmd_sn + window - 1`.
    pub window: u32,
    /// Whether headers have digests; `login` sets it as agreed.
    pub header_digest: bool,
    /// Whether data has digests.
    pub data_digest: bool,
}

/// What came in a login.
#[derive(Clone, Debug)]
pub struct LoginSeen {
    /// All requests.
    pub requests: Vec<Pdu>,
    /// All keys, in order.
    pub keys: Vec<(String, String)>,
}

impl LoginSeen {
    /// The value that was offered for a key.
    pub fn key(&self, name: &str) -> Option<&str> {
        let found = self.keys.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Peer {
    /// The next PDU.
    ///
    /// # Panics
    /// If the connection is closed, none comes in 10 s, or its digests are wrong.
    pub async fn recv(&mut self) -> Pdu {
        let received = self.try_recv().await;
        received.expect("a PDU comes, and the initiator does not close the connection")
    }

    /// The next PDU, which must have this opcode.
    ///
    /// # Panics
    /// As `recv`, and if it is another.
    pub async fn expect(&mut self, opcode: u8) -> Pdu {
        let pdu = self.recv().await;
        assert_eq!(pdu.opcode(), opcode, "{pdu:?}");
        pdu
    }

    /// The next PDU, or `None` if the initiator closed (or reset) the connection.
    ///
    /// # Panics
    /// If nothing comes in 10 s, or digests are wrong.
    pub async fn try_recv(&mut self) -> Option<Pdu> {
        let pdu = tokio::time::timeout(WAIT, self.read())
            .await
            .expect("the initiator sends or closes")?;
        // RFC 7143 §4.2.2.1: what is immediate, and Data-Out, takes no number.
        if pdu.opcode() == op::LOGIN {
            self.exp_cmd_sn = pdu.cmd_sn();
        } else if !pdu.immediate() && pdu.opcode() != op::DATA_OUT && pdu.opcode() != op::SNACK {
            self.exp_cmd_sn = pdu.cmd_sn().wrapping_add(1);
        }
        Some(pdu)
    }

    /// Waits until the initiator has closed (or reset) the connection; what it still sends is returned.
    ///
    /// # Panics
    /// If it does not in 10 s.
    pub async fn until_closed(&mut self) -> Vec<Pdu> {
        let mut rest = Vec::new();
        while let Some(pdu) = self.try_recv().await {
            rest.push(pdu);
        }
        rest
    }

    /// Sends a PDU with `StatSN`, `ExpCmdSN` and `MaxCmdSN` as an honest target would number it.
    pub async fn send(&mut self, mut pdu: Pdu) {
        let numbered = match pdu.opcode() {
            op::R2T => Some(false),
            // RFC 7143 §11.7.4: Data-In carries StatSN with the S bit only.
            op::DATA_IN => (pdu.flags() & 1 != 0).then_some(true),
            // RFC 7143 §11.19: an unsolicited NOP-In tells StatSN and does not take it.
            op::NOP_IN => Some(pdu.itt() != NO_TAG),
            _ => Some(true),
        };
        if let Some(takes) = numbered {
            pdu = pdu.with(at::STAT_SN, self.stat_sn);
            self.stat_sn = self.stat_sn.wrapping_add(u32::from(takes));
        }
        let last = self.exp_cmd_sn.wrapping_add(self.window).wrapping_sub(1);
        let pdu = pdu
            .with(at::EXP_CMD_SN, self.exp_cmd_sn)
            .with(at::MAX_CMD_SN, last);
        self.send_raw(&pdu).await;
    }

    /// Sends a PDU as it is (lengths, padding and digests are made).
    pub async fn send_raw(&mut self, pdu: &Pdu) {
        let bytes = pdu.encode(self.header_digest, self.data_digest);
        self.send_bytes(&bytes).await;
    }

    /// Sends bytes. An initiator that has closed meanwhile is no error: the next `recv` tells.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Closes in an orderly way (FIN); receiving still works.
    pub async fn close(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Resets the connection (RST).
    ///
    /// # Panics
    /// If the socket has no such option.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))
            .expect("a socket option");
    }

    /// Plays a login to its end as a target without authentication does, and with TSIH 1 in its last answer.
    ///
    /// # Panics
    /// As `recv`, or if something else than a login request comes.
    pub async fn login(&mut self) -> LoginSeen {
        self.login_with(1, &[]).await
    }

    /// The same with another TSIH, and with values in place of those that an honest target would answer. A key that
    /// the initiator did not offer is added to the last answer; an empty value leaves the key out.
    ///
    /// # Panics
    /// As `recv`, or if something else than a login request comes.
    pub async fn login_with(&mut self, tsih: u16, keys: &[(&str, &str)]) -> LoginSeen {
        let mut negotiation = Negotiation::default();
        let mut seen = LoginSeen {
            requests: Vec::new(),
            keys: Vec::new(),
        };
        let mut digests = (false, false);
        loop {
            let request = self.expect(op::LOGIN).await;
            let offered = request.keys();
            let last = request.is_final() && request.stages().1 == 3;
            let mut answers = Vec::new();
            if seen.requests.is_empty() {
                answers.push(("TargetPortalGroupTag".to_owned(), "1".to_owned()));
            }
            for (key, value) in &offered {
                let honest = match key.as_str() {
                    "AuthMethod" => Some("None".to_owned()),
                    "SessionType" if value == "Discovery" => {
                        negotiation.discovery = true;
                        None
                    }
                    _ => negotiation
                        .offer(key, value, &Settings::default())
                        .unwrap_or_else(|what| panic!("{what}")),
                };
                answers.extend(honest.map(|answer| (key.clone(), answer)));
            }
            seen.requests.push(request.clone());
            seen.keys.extend(offered);
            overrule(&mut answers, keys, &seen, last);
            for (key, value) in &answers {
                match key.as_str() {
                    "HeaderDigest" => digests.0 = value == "CRC32C",
                    "DataDigest" => digests.1 = value == "CRC32C",
                    _ => {}
                }
            }
            let pairs: Vec<(&str, &str)> = answers
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
            let flags = request.flags() & (FINAL | 0x0f);
            let tsih = if last { tsih } else { request.tsih() };
            self.send(Pdu::login_response(&request, flags, tsih, &pairs))
                .await;
            if last {
                (self.header_digest, self.data_digest) = digests;
                return seen;
            }
        }
    }

    /// Answers what an initiator asks before (and between) the PDUs that a test is about: pings, and SCSI commands
    /// that read or tell of `disk`, each in one Data-In with status. Writes must bring all data with them.
    ///
    /// # Panics
    /// If the PDU is something else, or the command wants more data.
    pub async fn answer(&mut self, pdu: &Pdu, disk: &Disk) {
        match pdu.opcode() {
            op::NOP_OUT if pdu.itt() == NO_TAG => {}
            op::NOP_OUT => self.send(Pdu::nop_in(pdu)).await,
            op::LOGOUT => self.send(Pdu::logout_response(pdu, 0)).await,
            op::SCSI_COMMAND => self.answer_command(pdu, disk).await,
            _ => panic!("nothing to answer to {pdu:?}"),
        }
    }

    /// Answers (see `answer`) until a PDU comes for which `which` holds, and gives that.
    ///
    /// # Panics
    /// As `recv` and `answer`.
    pub async fn answer_until(&mut self, disk: &Disk, which: impl Fn(&Pdu) -> bool) -> Pdu {
        loop {
            let pdu = self.recv().await;
            if which(&pdu) {
                return pdu;
            }
            self.answer(&pdu, disk).await;
        }
    }

    async fn answer_command(&mut self, pdu: &Pdu, disk: &Disk) {
        let cdb = pdu.cdb();
        let plan = if cdb[0] == scsi::op::REPORT_LUNS {
            scsi::plan_absent(&cdb, &pdu.lun().map_or(Vec::new(), |lun| vec![lun]))
        } else {
            scsi::plan(disk, &cdb, None, None)
        };
        let answer = match plan {
            Plan::Done(answer) => answer,
            Plan::Read { at, bytes } => {
                let mut data = vec![0; bytes];
                disk.read(at, &mut data).expect("the store can be read");
                scsi::Answer::good(data)
            }
            Plan::Take { bytes } => {
                assert_eq!(bytes, pdu.data.len(), "all data comes with the command");
                scsi::finish(disk, &cdb, &pdu.data)
            }
        };
        let expected = usize::try_from(pdu.expected()).unwrap_or(usize::MAX);
        if let Some(sense) = answer.sense {
            return self.send(Pdu::check_condition(pdu, &sense.bytes())).await;
        }
        if answer.data.is_empty() || answer.status != scsi::GOOD {
            return self.send(Pdu::scsi_response(pdu, answer.status)).await;
        }
        let data = &answer.data[..answer.data.len().min(expected)];
        let mut reply = Pdu::data_in(pdu, 0, 0, data, true).with_status(scsi::GOOD);
        if data.len() < expected {
            let missing = u32::try_from(expected - data.len()).unwrap_or(u32::MAX);
            reply = reply.with_residual(false, missing);
        }
        self.send(reply).await;
    }

    /// `None` at the end of the stream or when it breaks.
    async fn read(&mut self) -> Option<Pdu> {
        let mut bhs = [0; BHS_BYTES];
        self.stream.read_exact(&mut bhs).await.ok()?;
        let ahs = self.take(usize::from(bhs[4]) * 4).await?;
        if self.header_digest {
            let digest = self.take(4).await?;
            let header = [&bhs[..], &ahs].concat();
            assert_eq!(
                crc32c::crc32c(&header).to_le_bytes(),
                digest[..],
                "header digest"
            );
        }
        let length = usize::from(bhs[5]) << 16 | usize::from(bhs[6]) << 8 | usize::from(bhs[7]);
        let mut data = self.take(length.next_multiple_of(4)).await?;
        if self.data_digest && length > 0 {
            let digest = self.take(4).await?;
            assert_eq!(
                crc32c::crc32c(&data).to_le_bytes(),
                digest[..],
                "data digest"
            );
        }
        data.truncate(length);
        Some(Pdu {
            bhs,
            ahs: Bytes::from(ahs),
            data: Bytes::from(data),
        })
    }

    async fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let mut taken = vec![0; bytes];
        self.stream.read_exact(&mut taken).await.ok()?;
        Some(taken)
    }
}

/// Puts a test's values in place of honest ones.
fn overrule(
    answers: &mut Vec<(String, String)>,
    keys: &[(&str, &str)],
    seen: &LoginSeen,
    last: bool,
) {
    for (key, value) in keys {
        match answers.iter_mut().find(|(known, _)| known == key) {
            Some((_, honest)) => (*value).clone_into(honest),
            // A declaration is no answer, so that there is none to put another in place of.
            None if last && (seen.key(key).is_none() || *key == "MaxRecvDataSegmentLength") => {
                answers.push(((*key).to_owned(), (*value).to_owned()));
            }
            None => {}
        }
    }
    answers.retain(|(_, value)| !value.is_empty());
}

/// Far above what loopback needs: longer is a failed test.
const WAIT: Duration = Duration::from_secs(10);
