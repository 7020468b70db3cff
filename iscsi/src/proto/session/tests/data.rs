//! Writes against a model of a target that asks for what is missing, in all the ways that it may.

use proptest::prelude::*;

use super::*;

/// The target's side of one write.
#[derive(Debug)]
struct Model {
    itt: InitiatorTaskTag,
    length: u32,
    /// Bytes that are here: they come in order.
    received: u32,
    /// Bytes that have been asked for, or come unasked.
    asked: u32,
    r2t_sn: u32,
    /// Sequences that are open: tag, next number, next offset, end.
    open: Vec<(TargetTransferTag, u32, u32, u32)>,
}

impl Model {
    /// Takes a command; checks what came with it.
    fn new(transmit: &Transmit, agreed: &Agreed) -> Self {
        let command = ScsiCommand::parse(&transmit.header);
        let immediate = header::data_segment_bytes(&transmit.header);
        let length = command.expected_data_transfer_bytes;
        // RFC 7143 §13.11, §13.12, §13.14
        assert!(immediate == 0 || agreed.immediate_data);
        assert!(
            immediate
                <= agreed
                    .theirs_max_recv_data_segment_bytes
                    .min(agreed.first_burst_bytes)
        );
        let burst = length.min(agreed.first_burst_bytes);
        // RFC 7143 §13.10, §11.3.1
        let follows = !agreed.initial_r2t && immediate < burst;
        assert_eq!(command.is_final, !follows);
        let mut model = Self {
            itt: command.initiator_task_tag,
            length,
            received: immediate,
            asked: immediate,
            r2t_sn: 0,
            open: Vec::new(),
        };
        if follows {
            model.open.push((NO_TAG, 0, immediate, burst));
            model.asked = burst;
        }
        model
    }

    /// Takes a Data-Out; checks that it is the next of its sequence.
    fn data_out(&mut self, transmit: &Transmit, agreed: &Agreed) {
        let data_out = DataOut::parse(&transmit.header);
        let bytes = header::data_segment_bytes(&transmit.header);
        assert!(0 < bytes && bytes <= agreed.theirs_max_recv_data_segment_bytes);
        let at = self
            .open
            .iter()
            .position(|(ttt, ..)| *ttt == data_out.target_transfer_tag)
            .expect("the sequence was asked for");
        let (ttt, number, offset, end) = &mut self.open[at];
        assert_eq!(data_out.lun, if *ttt == NO_TAG { 0 } else { LUN });
        assert_eq!(
            (data_out.data_sn.0, data_out.buffer_offset),
            (*number, *offset)
        );
        *number += 1;
        *offset += bytes;
        assert!(*offset <= *end);
        assert_eq!(data_out.is_final, offset == end);
        self.received += bytes;
        if offset == end {
            self.open.remove(at);
        }
    }

    /// Asks for the next burst, of at most `most` bytes; false if nothing is left to ask for.
    fn ask(&mut self, script: &mut Script, agreed: &Agreed, most: u32) -> bool {
        let solicited = self.open.iter().filter(|(ttt, ..)| *ttt != NO_TAG).count();
        let bytes = (self.length - self.asked)
            .min(most)
            .min(agreed.max_burst_bytes);
        if bytes == 0 || solicited >= usize::from(agreed.max_outstanding_r2t) {
            return false;
        }
        let ttt = TargetTransferTag(1000 + self.r2t_sn);
        script
            .r2t(self.itt, self.r2t_sn, self.asked, bytes)
            .unwrap();
        self.open.push((ttt, 0, self.asked, self.asked + bytes));
        self.asked += bytes;
        self.r2t_sn += 1;
        true
    }
}

fn keys() -> impl Strategy<Value = Agreed> {
    (
        any::<bool>(),
        any::<bool>(),
        512_u32..20_000,
        512_u32..40_000,
        512_u32..40_000,
        1_u16..4,
    )
        .prop_map(
            |(initial_r2t, immediate_data, segment, first, burst, r2ts)| Agreed {
                initial_r2t,
                immediate_data,
                theirs_max_recv_data_segment_bytes: segment,
                first_burst_bytes: first.min(burst),
                max_burst_bytes: burst,
                max_outstanding_r2t: r2ts,
                ..agreed()
            },
        )
}

proptest! {
    // F7, F8, F10, F11, F12, F13, F14, F15: RFC 7143 §11.7, §11.8, §13.10-§13.17
    #[test]
    fn writes_side_by_side_send_each_byte_once_as_the_keys_allow(
        agreed in keys(),
        lengths in proptest::collection::vec(1_u32..100_000, 1..4),
        choices in proptest::collection::vec((0_usize..4, 1_u32..30_000), 1..60),
    ) {
        let mut script = Script::with(agreed.clone(), 10, 64);
        for length in &lengths {
            script.submit(Direction::Write(*length));
        }
        let mut models: Vec<Model> = Vec::new();
        let mut choices = (0..).zip(choices.into_iter().cycle());
        loop {
            let (round, (which, most)) = choices.next().unwrap();
            // Now and then the socket is full, and the target asks meanwhile.
            for _ in 0..=which {
                let Some(transmit) = script.session.poll_transmit(0) else { break };
                if header::opcode(&transmit.header) == Opcode::SCSI_COMMAND {
                    models.push(Model::new(&transmit, &agreed));
                } else {
                    let itt = DataOut::parse(&transmit.header).initiator_task_tag;
                    let model = models.iter_mut().find(|model| model.itt == itt).unwrap();
                    model.data_out(&transmit, &agreed);
                }
            }
            // Each is asked in turn, so that all come to an end.
            let index = round % models.len().max(1);
            if let Some(model) = models.get_mut(index) {
                model.ask(&mut script, &agreed, most);
            }
            let done = models.iter().all(|model| model.received == model.length);
            if done && models.len() == lengths.len() {
                break;
            }
        }
        for model in &models {
            prop_assert_eq!(script.good(model.itt).transferred, model.length);
        }
        prop_assert!(script.is_quiet());
    }
}

// F18: RFC 7143 §11.7.2
#[test]
fn request_to_acknowledge_data_ends_the_session() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::Read(4096));
    let data_in = DataIn {
        is_final: false,
        acknowledge: true,
        status: None,
        lun: LUN,
        initiator_task_tag: command.initiator_task_tag,
        target_transfer_tag: TargetTransferTag(5),
        numbers: script.numbers(),
        data_sn: DataSn(0),
        buffer_offset: 0,
    };
    let end = script.session.handle_header(0, &data_in.emit(), script.now);
    assert_eq!(violation(end), Violation::Acknowledge);
}

// F19
#[test]
fn overflow_is_told() {
    let mut script = Script::new();
    let (_, command) = script.start(Direction::Read(512));
    let status = DataInStatus {
        status: 0,
        residual: Residual::Overflow(100),
    };
    let (_, event) = script
        .data_in(command.initiator_task_tag, 0, 0, 512, Some(status))
        .unwrap();
    let end = completed(Ok(event));
    assert_eq!((end.transferred, end.overflow), (512, 100));
}

// F4: RFC 7143 §4.2.2.1
#[test]
fn window_of_one_makes_commands_follow_each_other_and_a_wide_one_is_filled() {
    let mut script = Script::with(agreed(), 10, 1);
    for _ in 0..3 {
        script.submit(Direction::None);
    }
    for number in 10..13 {
        let command = ScsiCommand::parse(&script.transmit().header);
        assert_eq!(command.cmd_sn, CmdSn(number));
        assert!(script.is_quiet());
        script.exp_cmd_sn = CmdSn(number + 1);
        script.max_cmd_sn = CmdSn(number + 1);
        script.good(command.initiator_task_tag);
    }
    let mut wide = Script::new();
    for _ in 0..4 {
        wide.submit(Direction::None);
    }
    assert_eq!(wide.drain().len(), 4);
}

// F6: RFC 7143 §4.2.2.1
#[test]
fn numbers_that_go_back_or_contradict_each_other_are_passed_over() {
    let mut script = Script::with(agreed(), 10, 2);
    let ping = |script: &mut Script, expected, maximum| {
        let numbers = ResponseNumbers {
            stat_sn: StatSn(0),
            exp_cmd_sn: CmdSn(expected),
            max_cmd_sn: CmdSn(maximum),
        };
        let nop_in = NopIn {
            lun: 0,
            initiator_task_tag: InitiatorTaskTag::RESERVED,
            target_transfer_tag: NO_TAG,
            numbers,
        };
        script.give(nop_in.emit(), &[]).unwrap();
    };
    ping(&mut script, 10, 10);
    ping(&mut script, 100, 98);
    for _ in 0..3 {
        script.submit(Direction::None);
    }
    assert_eq!(script.drain().len(), 2);
    ping(&mut script, 12, 12);
    assert_eq!(script.drain().len(), 1);
}

// F24: RFC 7143 §11.19.2
#[test]
fn ping_without_a_transfer_tag_gets_no_answer() {
    let mut script = Script::new();
    let nop_in = NopIn {
        lun: 0,
        initiator_task_tag: InitiatorTaskTag::RESERVED,
        target_transfer_tag: NO_TAG,
        numbers: script.numbers(),
    };
    script.give(nop_in.emit(), b"data").unwrap();
    assert!(script.is_quiet());
}
