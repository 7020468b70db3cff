//! Headers taken apart and put together. The bytes were written down from RFC 7143's drawings, field
//! by field, not by this crate.

use proptest::prelude::*;

use super::header::{self, Bhs, ResponseNumbers};
use super::scsi_response::{Residual, sense_data};
use super::serial::{CmdSn, DataSn, R2tSn, StatSn};
use super::tag::{InitiatorTaskTag, TargetTransferTag};
use super::*;

fn bytes(text: &str) -> Bhs {
    let digits: Vec<u8> = text
        .bytes()
        .filter(u8::is_ascii_hexdigit)
        .map(|digit| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap())
        .collect();
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    bytes.try_into().expect("48 bytes")
}

// RFC 7143 §11.3
#[test]
fn scsi_command_write_of_4096_bytes() {
    let mut expected = bytes(
        "01 a1 0000 00 001000  0001000000000000  00020003 00001000 00000010 00000007
         8a 00 00000000000000 08 00000008 00 00",
    );
    let command = scsi_command::ScsiCommand {
        immediate: false,
        is_final: true,
        read: false,
        write: true,
        attribute: scsi_command::TaskAttribute::SIMPLE,
        lun: 0x0001_0000_0000_0000,
        initiator_task_tag: InitiatorTaskTag(0x0002_0003),
        expected_data_transfer_bytes: 4096,
        cmd_sn: CmdSn(0x10),
        exp_stat_sn: StatSn(7),
        cdb: [0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0],
    };
    assert_eq!(scsi_command::ScsiCommand::parse(&expected), command);
    assert_eq!(header::data_segment_bytes(&expected), 4096);
    header::set_data_segment_bytes(&mut expected, 0);
    assert_eq!(command.emit(), expected);
}

// RFC 7143 §11.4
#[test]
fn scsi_response_with_check_condition_and_underflow() {
    let expected = bytes(
        "21 82 00 02 00 000000  0000000000000000  00010005 00000000 00000009 00000011
         00000090 00000003 00000000 00000200",
    );
    let response = scsi_response::ScsiResponse {
        residual: Residual::Underflow(512),
        bidirectional_residual: Residual::None,
        response: scsi_response::ServiceResponse::COMPLETED,
        status: 2,
        initiator_task_tag: InitiatorTaskTag(0x0001_0005),
        snack_tag: 0,
        numbers: ResponseNumbers {
            stat_sn: StatSn(9),
            exp_cmd_sn: CmdSn(0x11),
            max_cmd_sn: CmdSn(0x90),
        },
        exp_data_sn: DataSn(3),
    };
    assert_eq!(
        FromTarget::parse(&expected),
        Ok(FromTarget::ScsiResponse(response))
    );
    assert_eq!(response.emit(), expected);
}

// RFC 7143 §11.7
#[test]
fn data_in_with_status_in_its_last_pdu() {
    let expected = bytes(
        "25 81 00 00 00 000000  0000000000000000  00000001 ffffffff 00000004 00000003
         00000082 00000001 00001000 00000000",
    );
    let data_in = data_in::DataIn::parse(&expected);
    assert!(data_in.is_final && !data_in.acknowledge);
    assert_eq!(
        data_in.status,
        Some(data_in::DataInStatus {
            status: 0,
            residual: Residual::None
        })
    );
    assert_eq!(data_in.target_transfer_tag, TargetTransferTag::RESERVED);
    assert_eq!((data_in.data_sn, data_in.buffer_offset), (DataSn(1), 4096));
    assert_eq!(data_in.emit(), expected);
}

// RFC 7143 §11.8
#[test]
fn r2t_asks_for_a_burst() {
    let expected = bytes(
        "31 80 0000 00 000000  0001000000000000  00000001 00abcdef 00000004 00000003
         00000082 00000002 00040000 00010000",
    );
    let r2t = r2t::R2t::parse(&expected);
    assert_eq!(r2t.target_transfer_tag, TargetTransferTag(0x00ab_cdef));
    assert_eq!(
        (r2t.r2t_sn, r2t.buffer_offset, r2t.desired_bytes),
        (R2tSn(2), 0x40000, 0x10000)
    );
    assert_eq!(r2t.emit(), expected);
}

// RFC 7143 §11.12, §11.13
#[test]
fn login_request_and_response() {
    let expected = bytes(
        "43 87 00 00 00 000000  800102030405 0000  00000001 0000 0000 00000001 00000000
         00000000000000000000000000000000",
    );
    let request = login::LoginRequest {
        transit: true,
        is_continued: false,
        current_stage: login::Stage::OPERATIONAL,
        next_stage: login::Stage::FULL_FEATURE,
        version_max: 0,
        version_min: 0,
        isid: [0x80, 1, 2, 3, 4, 5],
        tsih: 0,
        initiator_task_tag: InitiatorTaskTag(1),
        cid: 0,
        cmd_sn: CmdSn(1),
        exp_stat_sn: StatSn(0),
    };
    assert_eq!(login::LoginRequest::parse(&expected), request);
    assert_eq!(request.emit(), expected);

    let refused = bytes(
        "23 00 00 00 00 000000  800102030405 0000  00000001 00000000 00000000 00000001
         00000001 02010000 0000000000000000",
    );
    let response = login::LoginResponse::parse(&refused);
    assert_eq!(response.status, login::LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(response.emit(), refused);
    assert_eq!(
        response.status.to_string(),
        "authentication failed: the target refused the CHAP name or secret (status 0201)"
    );
}

// RFC 7143 §11.9, §11.14, §11.15, §11.17
#[test]
fn async_logout_and_reject() {
    let asked = bytes(
        "32 80 0000 00 000000  0000000000000000  ffffffff 00000000 00000005 00000003
         00000082 01 00 0000 0000 001e 00000000",
    );
    let message = async_message::AsyncMessage::parse(&asked);
    assert_eq!(message.event, async_message::AsyncEvent::LOGOUT_REQUESTED);
    assert_eq!(message.parameter_3, 30);
    assert_eq!(message.emit(), asked);

    let out = bytes(
        "46 80 0000 00 000000  0000000000000000  ff010000 0000 0000 00000009 00000004
         00000000000000000000000000000000",
    );
    assert_eq!(logout::LogoutRequest::parse(&out).emit(), out);
    let answer = bytes(
        "26 80 00 00 00 000000  0000000000000000  ff010000 00000000 00000009 00000004
         00000082 00000000 0002 0014 00000000",
    );
    let response = logout::LogoutResponse::parse(&answer);
    assert_eq!((response.time_2_wait, response.time_2_retain), (2, 20));
    assert_eq!(response.emit(), answer);

    let rejected = bytes(
        "3f 80 04 00 00 000030  0000000000000000  ffffffff 00000000 00000009 00000004
         00000082 00000000 00000000 00000000",
    );
    let reject = reject::Reject::parse(&rejected);
    assert_eq!(reject.reason, reject::RejectReason::PROTOCOL_ERROR);
    assert_eq!(reject.reason.to_string(), "protocol error");
}

// RFC 7143 §11.5.1: the function codes, written a second time
#[test]
fn task_management_functions_have_the_codes_of_the_standard() {
    use task_management::TaskManagementFunction as Function;
    let codes = [
        (Function::ABORT_TASK, 1),
        (Function::ABORT_TASK_SET, 2),
        (Function::CLEAR_ACA, 3),
        (Function::CLEAR_TASK_SET, 4),
        (Function::LOGICAL_UNIT_RESET, 5),
        (Function::TARGET_WARM_RESET, 6),
        (Function::TARGET_COLD_RESET, 7),
        (Function::TASK_REASSIGN, 8),
    ];
    assert!(codes.iter().all(|(function, code)| function.0 == *code));
}

// RFC 7143 §11.4.7
#[test]
fn sense_data_is_cut_to_its_length_and_to_what_is_there() {
    assert_eq!(sense_data(&[0, 3, 1, 2, 3, 9, 9]), [1, 2, 3]);
    assert_eq!(sense_data(&[0, 18, 0x70, 0]), [0x70, 0]);
    assert!(sense_data(&[0]).is_empty());
    assert!(sense_data(&[]).is_empty());
}

#[test]
fn unknown_opcode_is_given_back() {
    let mut bhs = [0; 48];
    bhs[0] = 0x3a;
    assert_eq!(FromTarget::parse(&bhs), Err(Opcode(0x3a)));
    bhs[0] = 0x01;
    assert_eq!(FromTarget::parse(&bhs), Err(Opcode::SCSI_COMMAND));
}

#[test]
fn padding_fills_a_word() {
    let padding: Vec<u32> = (0..6).map(header::padding_bytes).collect();
    assert_eq!(padding, [0, 3, 2, 1, 0, 3]);
    assert_eq!(header::padding_bytes(header::DATA_SEGMENT_BYTES_MAX), 1);
}

/// For each PDU: what is read from any bytes is written, and read again, without a change.
macro_rules! round_trips {
    ($($name:ident: $kind:ty;)*) => {
        proptest! {
            $(
                #[test]
                fn $name(low in any::<[u8; 32]>(), high in any::<[u8; 16]>()) {
                    let mut bhs = [0; 48];
                    bhs[..32].copy_from_slice(&low);
                    bhs[32..].copy_from_slice(&high);
                    let value = <$kind>::parse(&bhs);
                    prop_assert_eq!(<$kind>::parse(&value.emit()), value);
                }
            )*
        }
    };
}

round_trips! {
    nop_out_survives: nop::NopOut;
    nop_in_survives: nop::NopIn;
    scsi_command_survives: scsi_command::ScsiCommand;
    task_management_request_survives: task_management::TaskManagementRequest;
    task_management_response_survives: task_management::TaskManagementResponse;
    login_request_survives: login::LoginRequest;
    login_response_survives: login::LoginResponse;
    text_request_survives: text::TextRequest;
    text_response_survives: text::TextResponse;
    data_out_survives: data_out::DataOut;
    data_in_survives: data_in::DataIn;
    logout_request_survives: logout::LogoutRequest;
    logout_response_survives: logout::LogoutResponse;
    r2t_survives: r2t::R2t;
    async_message_survives: async_message::AsyncMessage;
    reject_survives: reject::Reject;
    scsi_response_survives: scsi_response::ScsiResponse;
}

// RFC 7143 §11.4.5
#[test]
fn scsi_response_survives_with_each_residual() {
    for residual in [
        Residual::None,
        Residual::Underflow(5),
        Residual::Overflow(6),
    ] {
        let response = scsi_response::ScsiResponse {
            residual,
            bidirectional_residual: Residual::Overflow(1),
            response: scsi_response::ServiceResponse::TARGET_FAILURE,
            status: 8,
            initiator_task_tag: InitiatorTaskTag(77),
            snack_tag: 1,
            numbers: ResponseNumbers::default(),
            exp_data_sn: DataSn(2),
        };
        assert_eq!(
            scsi_response::ScsiResponse::parse(&response.emit()),
            response
        );
    }
}
