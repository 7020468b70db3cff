//! PDUs of a target, made for tests: right in every field but the serials, which `script::Peer::send` puts in.
//!
//! Source: RFC 7143 §11.

use super::pdu::{FINAL, NO_TAG, Pdu, at, header, op};

impl Pdu {
    /// A Login Response to a request: flags (T, C, CSG, NSG), TSIH and keys.
    pub fn login_response(request: &Self, flags: u8, tsih: u16, keys: &[(&str, &str)]) -> Self {
        let mut pdu = Self::new(header(op::LOGIN_RESPONSE, request.itt()), text(keys));
        pdu.bhs[1] = flags;
        pdu.bhs[8..14].copy_from_slice(&request.isid());
        pdu.bhs[14..16].copy_from_slice(&tsih.to_be_bytes());
        pdu
    }

    /// A Login Response that ends the login with a status.
    pub fn login_refusal(request: &Self, class: u8, detail: u8, keys: &[(&str, &str)]) -> Self {
        Self::login_response(request, 0, 0, keys)
            .with_byte(36, class)
            .with_byte(37, detail)
    }

    /// A SCSI Response with a status and no data.
    pub fn scsi_response(command: &Self, status: u8) -> Self {
        Self::new(header(op::SCSI_RESPONSE, command.itt()), Vec::new()).with_byte(3, status)
    }

    /// A SCSI Response with CHECK CONDITION and sense data as given (the two bytes of length are put before it).
    ///
    /// # Panics
    /// If the sense data is longer than its length can say.
    pub fn check_condition(command: &Self, sense: &[u8]) -> Self {
        let length = u16::try_from(sense.len()).expect("sense data is short");
        let mut data = length.to_be_bytes().to_vec();
        data.extend(sense);
        Self::scsi_response(command, 0x02).with_data(data)
    }

    /// A Data-In. `last` sets F; a status follows in a response, or with `with_status`.
    pub fn data_in(command: &Self, data_sn: u32, offset: u32, data: &[u8], last: bool) -> Self {
        let mut pdu = Self::new(header(op::DATA_IN, command.itt()), data.to_vec())
            .with(at::TTT, NO_TAG)
            .with(at::DATA_SN, data_sn)
            .with(at::OFFSET, offset);
        pdu.bhs[1] = if last { FINAL } else { 0 };
        pdu
    }

    /// The S bit and a status, for a Data-In.
    #[must_use]
    pub fn with_status(mut self, status: u8) -> Self {
        self.bhs[1] |= 1;
        self.bhs[3] = status;
        self
    }

    /// Residual underflow (U) or overflow (O) of a response or of a Data-In with status.
    #[must_use]
    pub fn with_residual(mut self, overflow: bool, count: u32) -> Self {
        self.bhs[1] |= if overflow { 0x04 } else { 0x02 };
        self.with(at::LENGTH, count)
    }

    /// An R2T for a range of a write.
    pub fn r2t(command: &Self, tag: u32, r2t_sn: u32, offset: u32, length: u32) -> Self {
        Self::new(header(op::R2T, command.itt()), Vec::new())
            .with_lun(command.lun_bytes())
            .with(at::TTT, tag)
            .with(at::DATA_SN, r2t_sn)
            .with(at::OFFSET, offset)
            .with(at::LENGTH, length)
    }

    /// The answer to a NOP-Out, with its data.
    pub fn nop_in(request: &Self) -> Self {
        Self::new(header(op::NOP_IN, request.itt()), request.data.clone())
            .with_lun(request.lun_bytes())
            .with(at::TTT, NO_TAG)
    }

    /// A NOP-In of our own: with a tag it wants an answer, with `NO_TAG` it only tells the window.
    pub fn ping(tag: u32) -> Self {
        Self::new(header(op::NOP_IN, NO_TAG), Vec::new()).with(at::TTT, tag)
    }

    /// A Text Response; a tag other than `NO_TAG` says that more is to come.
    pub fn text_response(request: &Self, flags: u8, tag: u32, text: &[u8]) -> Self {
        Self::new(header(op::TEXT_RESPONSE, request.itt()), text.to_vec())
            .with_byte(1, flags)
            .with(at::TTT, tag)
    }

    /// A Logout Response.
    pub fn logout_response(request: &Self, response: u8) -> Self {
        Self::new(header(op::LOGOUT_RESPONSE, request.itt()), Vec::new()).with_byte(2, response)
    }

    /// A Task Management Function Response.
    pub fn task_management_response(request: &Self, response: u8) -> Self {
        Self::new(
            header(op::TASK_MANAGEMENT_RESPONSE, request.itt()),
            Vec::new(),
        )
        .with_byte(2, response)
    }

    /// An Asynchronous Message with its event, vendor code and three parameters.
    pub fn async_message(event: u8, code: u8, parameters: [u16; 3]) -> Self {
        let mut pdu = Self::new(header(op::ASYNC, NO_TAG), Vec::new()).with(at::TTT, NO_TAG);
        (pdu.bhs[36], pdu.bhs[37]) = (event, code);
        for (index, parameter) in parameters.iter().enumerate() {
            let place = 38 + index * 2;
            pdu.bhs[place..place + 2].copy_from_slice(&parameter.to_be_bytes());
        }
        pdu
    }

    /// A Reject of a PDU, whose header goes along.
    pub fn reject(rejected: &Self, reason: u8) -> Self {
        Self::new(header(op::REJECT, NO_TAG), rejected.bhs.to_vec()).with_byte(2, reason)
    }
}

/// Keys as they go on the wire.
pub fn text(keys: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in keys {
        super::keys::put(&mut text, key, value);
    }
    text
}

/// Sense data of fixed format.
pub fn fixed_sense(key: u8, asc: u8, ascq: u8) -> [u8; 18] {
    super::scsi::Sense(key, asc, ascq).bytes()
}
