//! Scripts for the handshake: what a client says, byte for byte, and what it must hear.

use proptest::prelude::*;

use super::*;

const FIXED: u32 = 1;
const FIXED_NO_ZEROES: u32 = 3;

fn geometry() -> Geometry {
    Geometry {
        size_bytes: 0x10_0000,
        block_bytes: 512,
        physical_block_bytes: 4096,
        preferred_bytes: 65536,
        request_bytes_max: 1 << 20,
        read_only: false,
        write_cache: true,
        can_trim: true,
        can_write_zeroes: true,
        rotational: false,
    }
}

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&OptionHeader { option, length }.emit()[..], data].concat()
}

fn info_data(name: &[u8], kinds: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&u16::try_from(kinds.len()).unwrap().to_be_bytes());
    for kind in kinds {
        data.extend_from_slice(&kind.to_be_bytes());
    }
    data
}

fn script(flags: u32, options: &[Vec<u8>]) -> Vec<u8> {
    [&flags.to_be_bytes()[..], &options.concat()].concat()
}

/// What a whole conversation gave: output without the greeting, the last progress, unused bytes.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    output: Vec<u8>,
    progress: Progress,
    unused: usize,
    opened: u32,
    agreed: Agreed,
}

/// Gives the script in pieces of the lengths in `pieces` (repeated), opens the export when asked.
fn converse(
    script: &[u8],
    pieces: &[usize],
    export: &Result<Geometry, &str>,
) -> Result<Heard, Violation> {
    converse_with(Terms::default(), script, pieces, export)
}

fn converse_with(
    terms: Terms,
    script: &[u8],
    pieces: &[usize],
    export: &Result<Geometry, &str>,
) -> Result<Heard, Violation> {
    let mut machine = Handshake::new(terms);
    let mut output = machine.poll_output();
    assert_eq!(
        output.split_off(wire::GREETING_BYTES),
        b"",
        "the greeting and nothing else"
    );
    output.clear();
    let (mut given, mut used, mut opened) = (0, 0, 0);
    let mut pieces = pieces.iter().cycle();
    loop {
        let (taken, progress) = machine.handle_input(&script[used..given])?;
        used += taken;
        output.extend(machine.poll_output());
        match progress {
            Progress::NeedInput if given < script.len() => {
                given = (given + pieces.next().unwrap()).min(script.len());
            }
            Progress::OpenExport => {
                opened += 1;
                machine.handle_export(export.as_ref().map_err(|why| *why))?;
                output.extend(machine.poll_output());
            }
            Progress::NeedInput | Progress::Transmission | Progress::StartTls | Progress::Ended => {
                return Ok(Heard {
                    output,
                    progress,
                    unused: script.len() - used,
                    opened,
                    agreed: machine.agreed(),
                });
            }
        }
    }
}

fn hear(script: &[u8]) -> Result<Heard, Violation> {
    converse(script, &[usize::MAX >> 1], &Ok(geometry()))
}

fn replies(parts: &[(u32, u32, &[u8])]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|(option, kind, data)| {
            let length = u32::try_from(data.len()).unwrap();
            [&wire::option_reply(*option, *kind, length)[..], data].concat()
        })
        .collect()
}

/// Size 1 MiB; flags `HAS_FLAGS`, `SEND_FLUSH`, `SEND_FUA`, `SEND_TRIM`, `SEND_WRITE_ZEROES`, `CAN_MULTI_CONN`,
/// `SEND_CACHE`, `SEND_FAST_ZERO`.
const EXPORT_INFO: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x0d, 0x6d];
/// 512, 65536, 1 MiB.
const BLOCK_INFO: &[u8] = &[0, 3, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0x10, 0, 0];

#[test]
fn go_describes_the_export_and_begins_transmission() {
    let go = option_bytes(option::GO, &info_data(b"", &[]));
    let request = [0xaa; 28];
    let heard = hear(&[&script(FIXED_NO_ZEROES, &[go])[..], &request].concat()).unwrap();
    assert_eq!(
        heard.output,
        replies(&[
            (option::GO, reply::INFO, EXPORT_INFO),
            (option::GO, reply::INFO, BLOCK_INFO),
            (option::GO, reply::ACK, b""),
        ])
    );
    assert_eq!(
        (heard.progress, heard.unused, heard.opened),
        (Progress::Transmission, 28, 1)
    );
}

#[test]
fn name_and_description_are_given_when_asked_for() {
    let go = option_bytes(
        option::GO,
        &info_data(b"", &[info::NAME, info::DESCRIPTION, 77]),
    );
    let heard = hear(&script(FIXED, &[go])).unwrap();
    assert_eq!(
        heard.output,
        replies(&[
            (option::GO, reply::INFO, EXPORT_INFO),
            (option::GO, reply::INFO, BLOCK_INFO),
            (option::GO, reply::INFO, &[0, 1]),
            (
                option::GO,
                reply::INFO,
                b"\x00\x02block device served by cinder-nbd"
            ),
            (option::GO, reply::ACK, b""),
        ])
    );
}

#[test]
fn info_goes_on_with_options_and_opens_once() {
    let info = option_bytes(option::INFO, &info_data(b"", &[]));
    let go = option_bytes(option::GO, &info_data(b"", &[]));
    let heard = hear(&script(FIXED, &[info, go])).unwrap();
    assert_eq!((heard.progress, heard.opened), (Progress::Transmission, 1));
}

#[test]
fn export_name_pads_unless_both_said_no_zeroes() {
    let name = option_bytes(option::EXPORT_NAME, b"");
    for (flags, padding) in [(FIXED, 124), (0, 124), (FIXED_NO_ZEROES, 0), (2, 0)] {
        let heard = hear(&script(flags, std::slice::from_ref(&name))).unwrap();
        assert_eq!(heard.progress, Progress::Transmission);
        assert_eq!(&heard.output[..10], &EXPORT_INFO[2..]);
        assert_eq!(heard.output[10..], vec![0; padding]);
    }
}

#[test]
fn list_names_the_default_export_and_opens_nothing() {
    let heard = hear(&script(FIXED, &[option_bytes(option::LIST, b"")])).unwrap();
    assert_eq!(
        heard.output,
        replies(&[
            (
                option::LIST,
                reply::SERVER,
                b"\0\0\0\0block device served by cinder-nbd"
            ),
            (option::LIST, reply::ACK, b"")
        ])
    );
    assert_eq!((heard.progress, heard.opened), (Progress::NeedInput, 0));
    let heard = hear(&script(FIXED, &[option_bytes(option::LIST, b"x")])).unwrap();
    assert_eq!(
        heard.output,
        replies(&[(option::LIST, reply::ERR_INVALID, b"this option has no data")])
    );
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let heard = hear(&script(FIXED, &[option_bytes(option::ABORT, b"")])).unwrap();
    assert_eq!(heard.output, replies(&[(option::ABORT, reply::ACK, b"")]));
    assert_eq!(heard.progress, Progress::Ended);
}

#[test]
fn unknown_options_are_skipped_to_the_last_byte() {
    let unknown = option_bytes(0x7777, &[0x49; 5000]);
    let tls = option_bytes(option::STARTTLS, b"");
    let extended = option_bytes(11, b"");
    let abort = option_bytes(option::ABORT, b"");
    let heard = hear(&script(FIXED, &[unknown, tls, extended, abort])).unwrap();
    let no: &[u8] = b"this server does not have that option";
    let no_tls: &[u8] = b"this server has no TLS here";
    assert_eq!(
        heard.output,
        replies(&[
            (0x7777, reply::ERR_UNSUP, no),
            (option::STARTTLS, reply::ERR_UNSUP, no_tls),
            (11, reply::ERR_UNSUP, no),
            (option::ABORT, reply::ACK, b""),
        ])
    );
    assert_eq!((heard.progress, heard.unused), (Progress::Ended, 0));
}

#[test]
fn malformed_go_is_invalid_and_the_handshake_goes_on() {
    let good = info_data(b"", &[info::NAME]);
    let mut long_name = good.clone();
    long_name[3] = 200;
    let mut wrong_count = good.clone();
    wrong_count[5] = 9;
    for data in [
        &b""[..],
        b"\0\0",
        &good[..good.len() - 1],
        &long_name,
        &wrong_count,
    ] {
        let options = [
            option_bytes(option::GO, data),
            option_bytes(option::GO, &good),
        ];
        let heard = hear(&script(FIXED, &options)).unwrap();
        let refusal: &[u8] = b"malformed name or information requests";
        let first = replies(&[(option::GO, reply::ERR_INVALID, refusal)]);
        assert_eq!(heard.output[..first.len()], first, "{data:?}");
        assert_eq!(heard.progress, Progress::Transmission);
    }
}

#[test]
fn another_name_is_unknown_and_opens_nothing() {
    let heard = hear(&script(
        FIXED,
        &[option_bytes(option::GO, &info_data(b"v1", &[]))],
    ))
    .unwrap();
    let (_, text) = heard.output.split_at(wire::OPTION_REPLY_BYTES);
    assert_eq!(heard.output[12..16], reply::ERR_UNKNOWN.to_be_bytes());
    assert!(String::from_utf8_lossy(text).contains("ask for the empty name"));
    assert_eq!((heard.progress, heard.opened), (Progress::NeedInput, 0));
    let by_name = script(FIXED, &[option_bytes(option::EXPORT_NAME, b"v1")]);
    assert_eq!(hear(&by_name), Err(Violation::UnknownExport));
}

#[test]
fn an_export_that_cannot_be_opened_is_told_in_words() {
    let go = script(FIXED, &[option_bytes(option::GO, &info_data(b"", &[]))]);
    let heard = converse(&go, &[1], &Err("the target is away")).unwrap();
    let words: &[u8] = b"the target is away";
    assert_eq!(
        heard.output,
        replies(&[(option::GO, reply::ERR_UNKNOWN, words)])
    );
    let by_name = script(FIXED, &[option_bytes(option::EXPORT_NAME, b"")]);
    assert_eq!(
        converse(&by_name, &[1], &Err("away")),
        Err(Violation::UnknownExport)
    );
}

/// The data of the two options about contexts.
fn context_data(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = string(name);
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend_from_slice(&string(query));
    }
    data
}

/// What a client hears that has structured replies and then says this of contexts.
fn hear_of_contexts(option: u32, data: &[u8]) -> (Vec<u8>, Agreed) {
    let options = [
        option_bytes(option::STRUCTURED_REPLY, b""),
        option_bytes(option, data),
    ];
    let mut heard = hear(&script(FIXED, &options)).unwrap();
    assert_eq!((heard.progress, heard.unused), (Progress::NeedInput, 0));
    let ack = replies(&[(option::STRUCTURED_REPLY, reply::ACK, b"")]);
    assert_eq!(heard.output[..ack.len()], ack);
    (heard.output.split_off(ack.len()), heard.agreed)
}

const CHOSEN: &[u8] = b"\0\0\0\x01base:allocation";
const LISTED: &[u8] = b"\0\0\0\0base:allocation";

#[test]
fn structured_replies_offer_df_too() {
    let options = [
        option_bytes(option::STRUCTURED_REPLY, b"no data, please"),
        option_bytes(option::STRUCTURED_REPLY, b""),
        option_bytes(option::GO, &info_data(b"", &[])),
    ];
    let heard = hear(&script(FIXED, &options)).unwrap();
    let mut info = EXPORT_INFO.to_vec();
    info[11] |= 0x80;
    assert_eq!(
        heard.output,
        replies(&[
            (
                option::STRUCTURED_REPLY,
                reply::ERR_INVALID,
                b"this option has no data"
            ),
            (option::STRUCTURED_REPLY, reply::ACK, b""),
            (option::GO, reply::INFO, &info),
            (option::GO, reply::INFO, BLOCK_INFO),
            (option::GO, reply::ACK, b""),
        ])
    );
    assert!(heard.agreed.structured_replies && !heard.agreed.base_allocation);
}

#[test]
fn contexts_are_listed_by_wildcard_and_chosen_by_name() {
    let list = option::LIST_META_CONTEXT;
    let set = option::SET_META_CONTEXT;
    for (option, queries, found, is_chosen) in [
        (list, &[][..], Some(LISTED), false),
        (list, &[b"base:".as_slice()][..], Some(LISTED), false),
        (
            list,
            &[b"qemu:".as_slice(), b"base:allocation"],
            Some(LISTED),
            false,
        ),
        (list, &[b"qemu:".as_slice()], None, false),
        (set, &[b"base:allocation".as_slice()], Some(CHOSEN), true),
        (
            set,
            &[b"x:y".as_slice(), b"base:allocation", b"base:allocation"],
            Some(CHOSEN),
            true,
        ),
        (set, &[b"base:".as_slice()], None, false),
        (set, &[b"base".as_slice(), b""], None, false),
        (set, &[], None, false),
    ] {
        let (heard, agreed) = hear_of_contexts(option, &context_data(b"", queries));
        let ack = (option, reply::ACK, b"".as_slice());
        let expected = match found {
            Some(context) => replies(&[(option, reply::META_CONTEXT, context), ack]),
            None => replies(&[ack]),
        };
        assert_eq!(heard, expected, "{queries:?}");
        assert_eq!(agreed.base_allocation, is_chosen, "{queries:?}");
    }
}

#[test]
fn contexts_that_are_asked_for_wrongly_are_refused() {
    let set = option::SET_META_CONTEXT;
    let good = context_data(b"", &[b"base:allocation"]);
    // Without structured replies.
    let early = hear(&script(FIXED, &[option_bytes(set, &good)])).unwrap();
    assert_eq!(early.output[12..16], reply::ERR_INVALID.to_be_bytes());
    assert_eq!(early.agreed, Agreed::default());
    let mut many = good.clone();
    many[4..8].fill(0xff);
    for bad in [
        &good[..good.len() - 1],
        &good[..7],
        b"",
        &many,
        &[&good[..], b"x"].concat(),
    ] {
        let (heard, agreed) = hear_of_contexts(set, bad);
        assert_eq!(heard[12..16], reply::ERR_INVALID.to_be_bytes(), "{bad:?}");
        assert!(!agreed.base_allocation);
    }
    let (heard, _) = hear_of_contexts(set, &context_data(b"v1", &[b"base:allocation"]));
    assert_eq!(heard[12..16], reply::ERR_UNKNOWN.to_be_bytes());
    // A choice that fails takes an earlier one back.
    let options = [
        option_bytes(option::STRUCTURED_REPLY, b""),
        option_bytes(set, &good),
        option_bytes(set, &many),
    ];
    let heard = hear(&script(FIXED, &options)).unwrap();
    assert!(!heard.agreed.base_allocation);
}

#[test]
fn an_export_with_a_name_is_found_by_it_and_by_none() {
    let terms = Terms {
        name: "disk1".into(),
        description: "a disk".into(),
        tls: false,
    };
    let kinds = [info::NAME, info::DESCRIPTION];
    for name in [&b""[..], b"disk1"] {
        let options = [
            option_bytes(option::LIST, b""),
            option_bytes(option::GO, &info_data(name, &kinds)),
        ];
        let whole = script(FIXED, &options);
        let heard = converse_with(terms.clone(), &whole, &[9], &Ok(geometry())).unwrap();
        assert_eq!(
            heard.output,
            replies(&[
                (option::LIST, reply::SERVER, b"\0\0\0\x05disk1a disk"),
                (option::LIST, reply::ACK, b""),
                (option::GO, reply::INFO, EXPORT_INFO),
                (option::GO, reply::INFO, BLOCK_INFO),
                (option::GO, reply::INFO, b"\0\x01disk1"),
                (option::GO, reply::INFO, b"\0\x02a disk"),
                (option::GO, reply::ACK, b""),
            ])
        );
    }
    let by_name = script(FIXED, &[option_bytes(option::EXPORT_NAME, b"disk1")]);
    let heard = converse_with(terms.clone(), &by_name, &[9], &Ok(geometry())).unwrap();
    assert_eq!(heard.progress, Progress::Transmission);
    let wrong = script(FIXED, &[option_bytes(option::EXPORT_NAME, b"disk")]);
    let heard = converse_with(terms, &wrong, &[9], &Ok(geometry()));
    assert_eq!(heard, Err(Violation::UnknownExport));
}

fn secure() -> Terms {
    Terms {
        tls: true,
        ..Terms::default()
    }
}

/// proto.md: FORCEDTLS.
#[test]
fn where_tls_is_demanded_nothing_is_done_without() {
    let refused = [
        (option::LIST, Vec::new()),
        (option::INFO, info_data(b"", &[])),
        (option::GO, info_data(b"", &[])),
        (option::STRUCTURED_REPLY, Vec::new()),
        (option::SET_META_CONTEXT, context_data(b"", &[])),
        (0x7777, vec![1; 5000]),
    ];
    let mut options: Vec<_> = refused
        .iter()
        .map(|(option, data)| option_bytes(*option, data))
        .collect();
    options.push(option_bytes(option::ABORT, b""));
    let whole = script(FIXED, &options);
    let heard = converse_with(secure(), &whole, &[77], &Ok(geometry())).unwrap();
    let why: &[u8] = b"this server does nothing without TLS: begin with STARTTLS";
    let mut expected: Vec<_> = refused
        .iter()
        .map(|(option, _)| (*option, reply::ERR_TLS_REQD, why))
        .collect();
    expected.push((option::ABORT, reply::ACK, b""));
    assert_eq!(heard.output, replies(&expected));
    assert_eq!((heard.opened, heard.unused), (0, 0));
    let by_name = script(FIXED, &[option_bytes(option::EXPORT_NAME, b"")]);
    let heard = converse_with(secure(), &by_name, &[77], &Ok(geometry()));
    assert_eq!(heard, Err(Violation::TlsRequired));
}

#[test]
fn after_tls_the_handshake_goes_on_and_tls_is_not_begun_again() {
    let mut machine = Handshake::new(secure());
    machine.poll_output();
    let options = [
        option_bytes(option::STARTTLS, b"data"),
        option_bytes(option::STARTTLS, b""),
    ];
    let whole = script(FIXED, &options);
    assert_eq!(
        machine.handle_input(&whole),
        Ok((whole.len(), Progress::StartTls))
    );
    assert_eq!(
        machine.poll_output(),
        replies(&[
            (
                option::STARTTLS,
                reply::ERR_INVALID,
                b"this option has no data"
            ),
            (option::STARTTLS, reply::ACK, b""),
        ])
    );
    machine.handle_tls();
    let options = [
        option_bytes(option::STARTTLS, b""),
        option_bytes(option::LIST, b""),
        option_bytes(option::STRUCTURED_REPLY, b""),
    ]
    .concat();
    assert_eq!(
        machine.handle_input(&options),
        Ok((options.len(), Progress::NeedInput))
    );
    assert_eq!(
        machine.poll_output(),
        replies(&[
            (option::STARTTLS, reply::ERR_INVALID, b"TLS is on already"),
            (
                option::LIST,
                reply::SERVER,
                b"\0\0\0\0block device served by cinder-nbd"
            ),
            (option::LIST, reply::ACK, b""),
            (option::STRUCTURED_REPLY, reply::ACK, b""),
        ])
    );
    assert!(machine.agreed().structured_replies);
}

/// Options that somebody in between puts behind STARTTLS must not be taken for the client's own.
#[test]
fn bytes_in_the_clear_behind_starttls_end_the_connection() {
    let mut machine = Handshake::new(secure());
    let options = [
        option_bytes(option::STARTTLS, b""),
        option_bytes(option::LIST, b""),
    ];
    let whole = script(FIXED, &options);
    assert_eq!(machine.handle_input(&whole), Err(Violation::BytesBeforeTls));
}

#[test]
fn limits_close_the_connection() {
    assert_eq!(hear(&4_u32.to_be_bytes()), Err(Violation::ClientFlags(4)));
    assert!(matches!(
        hear(&script(FIXED, &[vec![0; 16]])),
        Err(Violation::Magic(_))
    ));
    let list = option_bytes(option::LIST, b"");
    assert_eq!(
        hear(&script(0, std::slice::from_ref(&list))),
        Err(Violation::NotFixedNewstyle(3))
    );
    let many = vec![list; usize::try_from(OPTIONS_MAX).unwrap() + 1];
    assert_eq!(hear(&script(FIXED, &many)), Err(Violation::TooManyOptions));
    let length = OPTION_SKIP_BYTES_MAX + 1;
    let huge = OptionHeader { option: 99, length }.emit().to_vec();
    assert_eq!(
        hear(&script(FIXED, &[huge])),
        Err(Violation::OptionTooLong { option: 99, length })
    );
    let length = STRING_BYTES_MAX + 1;
    let name = OptionHeader {
        option: option::EXPORT_NAME,
        length,
    }
    .emit()
    .to_vec();
    assert_eq!(
        hear(&script(FIXED, &[name])),
        Err(Violation::OptionTooLong {
            option: option::EXPORT_NAME,
            length
        })
    );
}

#[test]
fn a_known_option_with_too_much_data_is_refused_and_skipped() {
    let data = vec![0; usize_of(OPTION_BYTES_MAX) + 1];
    let options = [
        option_bytes(option::GO, &data),
        option_bytes(option::ABORT, b""),
    ];
    let heard = hear(&script(FIXED, &options)).unwrap();
    assert_eq!(heard.output[12..16], reply::ERR_TOO_BIG.to_be_bytes());
    assert_eq!((heard.progress, heard.unused), (Progress::Ended, 0));
}

#[test]
fn block_sizes_keep_the_rules_whatever_the_backend_says() {
    for (block, physical, preferred, largest) in [
        (512, 512, 1, 512),
        (4096, 512, 12_345, 100_000),
        (512, 4096, u32::MAX, u32::MAX),
    ] {
        let geometry = Geometry {
            block_bytes: block,
            physical_block_bytes: physical,
            preferred_bytes: preferred,
            request_bytes_max: largest,
            ..geometry()
        };
        let data = block_size_info(&geometry);
        let value = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
        let (least, preferred, largest) = (value(2), value(6), value(10));
        assert!(
            least.is_power_of_two() && preferred.is_power_of_two(),
            "{data:?}"
        );
        assert!(
            least <= preferred && preferred <= largest && preferred >= 512,
            "{data:?}"
        );
        assert_eq!(largest % least, 0);
    }
}

proptest! {
    /// However the stream is cut, the same is heard.
    #[test]
    fn cuts_do_not_matter(pieces in prop::collection::vec(1_usize..40, 1..8)) {
        let whole = script(FIXED_NO_ZEROES, &[
            option_bytes(option::STRUCTURED_REPLY, b""),
            option_bytes(option::SET_META_CONTEXT, &context_data(b"", &[b"base:allocation"])),
            option_bytes(4242, &[1; 77]),
            option_bytes(option::LIST, b""),
            option_bytes(option::INFO, &info_data(b"nope", &[info::NAME])),
            option_bytes(option::GO, &info_data(b"", &[info::NAME, info::BLOCK_SIZE])),
        ]);
        prop_assert_eq!(converse(&whole, &pieces, &Ok(geometry())), hear(&whole));
    }

    /// Nothing a client can say makes the machine panic or answer without bounds.
    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut bytes = bytes;
        for prefix in [&b""[..], &[0, 0, 0, 3], b"\x00\x00\x00\x03IHAVEOPT\x00\x00\x00"] {
            bytes.splice(0..0, prefix.iter().copied());
            if let Ok(heard) = converse(&bytes, &[7, 1, 100], &Ok(geometry())) {
                prop_assert!(heard.output.len() < 70 * bytes.len() + 200);
            }
        }
    }
}
