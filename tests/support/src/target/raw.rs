//! An initiator of bare headers, for the tests of this target: it hides nothing, checks nothing, and does one thing
//! at a time on a blocking socket.
//!
//! No digests, no windows, no data beyond a block: what a test needs beyond that it sends by `send`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::Target;
use super::pdu::{BHS_BYTES, Bhs, Pdu, word};

/// An initiator's connection.
#[derive(Debug)]
pub struct Raw {
    /// The socket; reads end after 5 s.
    pub stream: TcpStream,
    /// The next `CmdSN`.
    pub cmd_sn: u32,
    /// What is acknowledged with the next PDU.
    pub exp_stat_sn: u32,
    /// The tag of the last command.
    pub itt: u32,
    /// The LUN of commands.
    pub lun: u8,
}

/// Status class and detail of a refused login, and its text; zeroes and `closed` for a closed connection.
pub type Refused = (u8, u8, String);

impl Raw {
    /// Logs in to the first target of a process, ISID 1, LUN 1.
    ///
    /// # Panics
    /// If that fails.
    pub fn login(target: &Target) -> Self {
        Self::try_login(target, 1).unwrap_or_else(|refused| panic!("login refused: {refused:?}"))
    }

    /// The same with the last byte of the ISID told.
    ///
    /// # Errors
    /// What the target said.
    ///
    /// # Panics
    /// If there is no target or no connection.
    pub fn try_login(target: &Target, isid: u8) -> Result<Self, Refused> {
        let iqn = target.targets().first().cloned().unwrap_or_default();
        Self::connect(target.address(), &iqn, isid)
    }

    /// Logs in to a target by its address and name.
    ///
    /// # Errors
    /// What the target said.
    ///
    /// # Panics
    /// If there is no connection.
    pub fn connect(address: SocketAddr, iqn: &str, isid: u8) -> Result<Self, Refused> {
        let keys = format!("TargetName={iqn}\0InitialR2T=No\0ImmediateData=Yes\0");
        let mut raw = Self::open(address);
        raw.enter(isid, 0, 0, &keys).map(|_| raw)
    }

    /// A connection without login.
    ///
    /// # Panics
    /// If there is none to be had.
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the target listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a socket option");
        Self {
            stream,
            cmd_sn: 100,
            exp_stat_sn: 0,
            itt: 1,
            lun: 1,
        }
    }

    /// One login request from the operational stage to full feature phase; gives the answer's header and text.
    ///
    /// # Errors
    /// What the target said.
    ///
    /// # Panics
    /// If the answer is none to this request.
    pub fn enter(
        &mut self,
        isid: u8,
        tsih: u16,
        cid: u16,
        keys: &str,
    ) -> Result<(Bhs, String), Refused> {
        let text = format!("InitiatorName=iqn.2026-11.test:raw\0SessionType=Normal\0{keys}");
        let (bhs, text) = self.step(0x87, isid, tsih, cid, &text)?;
        assert_eq!((bhs[0], bhs[1]), (0x23, 0x87));
        Ok((bhs, text))
    }

    /// One login request with these flags (T, C, stages) and text; gives the answer's header and text.
    ///
    /// # Errors
    /// What the target said.
    pub fn step(
        &mut self,
        flags: u8,
        isid: u8,
        tsih: u16,
        cid: u16,
        text: &str,
    ) -> Result<(Bhs, String), Refused> {
        let mut bhs = [0; BHS_BYTES];
        (bhs[0], bhs[1]) = (0x43, flags);
        (bhs[8], bhs[13]) = (0x80, isid);
        bhs[14..16].copy_from_slice(&tsih.to_be_bytes());
        bhs[20..22].copy_from_slice(&cid.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, text.as_bytes());
        let Some((bhs, data)) = self.receive() else {
            return Err((0, 0, "closed".into()));
        };
        let text = String::from_utf8_lossy(&data).into_owned();
        if bhs[36] != 0 {
            return Err((bhs[36], bhs[37], text.trim_end_matches('\0').to_owned()));
        }
        Ok((bhs, text))
    }

    /// A text request (`tag` of an answer that goes on, or all ones) and its answer.
    ///
    /// # Panics
    /// If something else comes.
    pub fn text(&mut self, tag: u32, text: &str) -> (Bhs, String) {
        let mut bhs = [0; BHS_BYTES];
        (bhs[0], bhs[1]) = (0x44, 0x80);
        bhs[16..20].copy_from_slice(b"text");
        bhs[20..24].copy_from_slice(&tag.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, text.as_bytes());
        let (bhs, data) = self.receive().expect("the connection stays");
        assert_eq!(bhs[0], 0x24);
        (bhs, String::from_utf8_lossy(&data).into_owned())
    }

    /// A command without data of ours, and the first answer to it.
    ///
    /// # Panics
    /// If the connection ends.
    pub fn command(&mut self, cdb: &[u8], expected: u32) -> (Bhs, Vec<u8>) {
        self.send_command(cdb, expected, &[]);
        self.receive().expect("the connection stays")
    }

    /// An immediate ping and its answer.
    ///
    /// # Panics
    /// If something else comes.
    pub fn echo(&mut self) {
        let mut bhs = [0; BHS_BYTES];
        (bhs[0], bhs[1]) = (0x40, 0x80);
        bhs[16..20].copy_from_slice(b"echo");
        bhs[20..24].fill(0xff);
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, &[]);
        let (answer, _) = self.receive_unsolicited().expect("the connection stays");
        assert_eq!((answer[0], &answer[16..20]), (0x20, &b"echo"[..]));
    }

    /// An immediate task management function, with the tag of the task it is about; gives the response.
    ///
    /// # Panics
    /// If something else comes.
    pub fn manage(&mut self, function: u8, task: u32) -> u8 {
        self.send_manage(function, task);
        let (answer, _) = self.receive().expect("the connection stays");
        assert_eq!(answer[0], 0x22);
        answer[2]
    }

    /// The same without waiting.
    pub fn send_manage(&mut self, function: u8, task: u32) {
        let mut bhs = [0; BHS_BYTES];
        (bhs[0], bhs[1], bhs[9]) = (0x42, 0x80 | function, self.lun);
        bhs[16..20].copy_from_slice(b"mgmt");
        // RFC 7143 §11.5.5: reserved where there is no task.
        let task = if function == 1 { task } else { u32::MAX };
        bhs[20..24].copy_from_slice(&task.to_be_bytes());
        if function == 1 {
            let number = self
                .cmd_sn
                .wrapping_sub(self.itt.wrapping_sub(task).wrapping_add(1));
            bhs[32..36].copy_from_slice(&number.to_be_bytes());
        }
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, &[]);
    }

    /// Writes to LBA 0 with immediate data.
    pub fn send_write(&mut self, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap_or(0);
        self.send_command(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], length, data);
    }

    /// A command with its data, or with the length of what it reads.
    pub fn send_command(&mut self, cdb: &[u8], expected: u32, data: &[u8]) {
        let mut bhs = [0; BHS_BYTES];
        let direction = match (expected, data.is_empty()) {
            (0, _) => 0,
            (_, true) => 0x40,
            (_, false) => 0x20,
        };
        (bhs[0], bhs[1], bhs[9]) = (0x01, 0x81 | direction, self.lun);
        self.itt += 1;
        bhs[16..20].copy_from_slice(&self.itt.to_be_bytes());
        bhs[20..24].copy_from_slice(&expected.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(bhs, data);
    }

    /// A PDU with `ExpStatSN` put in.
    ///
    /// # Panics
    /// If the connection is broken.
    pub fn send(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        let bytes = Pdu::new(bhs, data.to_vec()).encode(false, false);
        self.stream.write_all(&bytes).expect("the connection stays");
    }

    /// The next answer; `None` if the connection is closed. What only tells the window is passed over.
    pub fn receive(&mut self) -> Option<(Bhs, Vec<u8>)> {
        loop {
            let (bhs, data) = self.receive_unsolicited()?;
            if bhs[0] != 0x20 {
                return Some((bhs, data));
            }
        }
    }

    /// The next PDU, whatever it is.
    pub fn receive_unsolicited(&mut self) -> Option<(Bhs, Vec<u8>)> {
        let mut bhs = [0; BHS_BYTES];
        self.stream.read_exact(&mut bhs).ok()?;
        let length = usize::try_from(u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]])).ok()?;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.stream.read_exact(&mut data).ok()?;
        data.truncate(length);
        // A NOP-In that wants nothing takes no StatSN, nor does an R2T, nor a Data-In without status.
        let silent = bhs[0] == 0x20 && bhs[16..20] == [0xff; 4];
        if !silent && bhs[0] != 0x31 && !(bhs[0] == 0x25 && bhs[1] & 1 == 0) {
            self.exp_stat_sn = word(&bhs, 24).wrapping_add(1);
        }
        Some((bhs, data))
    }
}
