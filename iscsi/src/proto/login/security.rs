//! The security stage: what was offered, what was answered, who has proved what.
//!
//! ```text
//!             AuthMethod=CHAP          CHAP_A, I, C              CHAP_N, R
//!  MethodOffered ----> AlgorithmOffered ----> Proving --(mutual)---> Settled
//!        |                                       |                     ^
//!        | AuthMethod=None                       +--(one-way)----------+
//!        +-------------------------------------------------------------+
//! ```
//!
//! Only `Settled` has a `Trust`, without which a login does not leave the stage: where the target was to
//! prove itself, a `Trust` is made of its proof and of nothing else.
//!
//! Source: RFC 7143 §12.1.

use crate::proto::chap::{self, Challenge, OurChallenge, TargetProved, Unproved};
use crate::proto::{ChapAlgorithm, LoginError, SessionParams, Violation};

/// Where the security stage stands.
#[derive(Debug)]
pub(super) enum Security {
    /// `AuthMethod` is out.
    MethodOffered,
    /// `CHAP_A` is out.
    AlgorithmOffered,
    /// Our name and response are out; with mutual CHAP our challenge too. The target picked the
    /// algorithm, for both directions.
    Proving {
        picked: ChapAlgorithm,
        asked: Option<OurChallenge>,
    },
    /// All was said; the target has to leave the stage with us.
    Settled(Trust),
}

/// Why we go on with this target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It was not asked to prove itself.
    NotAsked(NotAsked),
    /// It was, and did.
    Proved(TargetProved),
}

/// The parameters ask for no proof; cannot be had if they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotAsked(());

impl NotAsked {
    pub(super) fn by(params: &SessionParams) -> Result<Self, Unproved> {
        match params.mutual_chap {
            None => Ok(Self(())),
            Some(_) => Err(Unproved::Silent),
        }
    }
}

/// What to say next, as keys.
pub(super) type Words = Vec<(&'static str, zeroize::Zeroizing<String>)>;

/// `AuthMethod` as we offer it.
pub(super) fn offered_methods(params: &SessionParams) -> &'static str {
    // RFC 7143 §12.1 (L24): in the order of our preference; what we would not accept is not offered
    match (&params.chap, params.is_authentication_required()) {
        (Some(_), true) => "CHAP",
        (Some(_), false) => "CHAP,None",
        (None, _) => "None",
    }
}

/// The answer to `AuthMethod`.
pub(super) fn handle_method(
    params: &SessionParams,
    method: Option<&str>,
) -> Result<(Security, Words), LoginError> {
    let offered = offered_methods(params);
    // RFC 7143 §12.1 (L11, L24): one of the offered, and nothing else
    match method {
        Some("CHAP") if params.chap.is_some() => {
            let algorithms = chap::offer(&params.chap_algorithms);
            let words = vec![("CHAP_A", algorithms.into())];
            return Ok((Security::AlgorithmOffered, words));
        }
        Some("None") if !params.is_authentication_required() => {}
        // A target without accounts may pass over the key when there was nothing to choose.
        None if params.chap.is_none() => {}
        Some("Reject") => return Err(LoginError::Authentication { offered }),
        Some(other) => return Err(Violation::answer("AuthMethod", other, offered).into()),
        None => return Err(Violation::KeyMissing("AuthMethod").into()),
    }
    let trust = Trust::NotAsked(NotAsked::by(params)?);
    Ok((Security::Settled(trust), Vec::new()))
}

/// `CHAP_A`, `CHAP_I` and `CHAP_C`: the target's challenge; answered with ours, where one is due.
pub(super) fn handle_challenge(
    params: &SessionParams,
    ours: Option<OurChallenge>,
    [algorithm, identifier, challenge]: [Option<&str>; 3],
) -> Result<(Security, Words), LoginError> {
    let algorithm = algorithm.ok_or(Violation::KeyMissing("CHAP_A"))?;
    if algorithm == "Reject" {
        return Err(LoginError::ChapAlgorithm {
            offered: chap::offer(&params.chap_algorithms),
        });
    }
    let identifier = identifier.ok_or(Violation::KeyMissing("CHAP_I"))?;
    let challenge = challenge.ok_or(Violation::KeyMissing("CHAP_C"))?;
    let theirs = Challenge::parse(&params.chap_algorithms, algorithm, identifier, challenge)?;
    let Some(credentials) = &params.chap else {
        return Err(Violation::KeyOutOfPlace("CHAP_C".to_owned()).into());
    };
    // RFC 7143 §12.1.3: name and response in one request, with them our own challenge
    let mut words = vec![
        ("CHAP_N", credentials.name.clone().into()),
        ("CHAP_R", theirs.response(credentials)),
    ];
    if let Some(ours) = &ours {
        let (identifier, challenge) = ours.spell(&theirs)?;
        words.push(("CHAP_I", identifier.into()));
        words.push(("CHAP_C", challenge.into()));
    }
    let proving = Security::Proving {
        picked: theirs.algorithm(),
        asked: ours,
    };
    Ok((proving, words))
}

/// `CHAP_N` and `CHAP_R`, or nothing, after our response.
pub(super) fn handle_proof(
    params: &SessionParams,
    picked: ChapAlgorithm,
    asked: Option<OurChallenge>,
    [name, response]: [Option<&str>; 2],
) -> Result<Trust, LoginError> {
    let Some(ours) = asked else {
        return match name.or(response) {
            None => Ok(Trust::NotAsked(NotAsked::by(params)?)),
            Some(_) => Err(Violation::KeyOutOfPlace("CHAP_N".to_owned()).into()),
        };
    };
    let (Some(own), Some(expected)) = (&params.chap, &params.mutual_chap) else {
        return Err(Unproved::Silent.into());
    };
    // RFC 7143 §12.1.3 (C12): who was asked and says nothing has proved nothing
    let (name, response) = match (name, response) {
        (Some(name), Some(response)) => (name, response),
        (None, None) => return Err(Unproved::Silent.into()),
        (Some(_), None) => return Err(Violation::KeyMissing("CHAP_R").into()),
        (None, Some(_)) => return Err(Violation::KeyMissing("CHAP_N").into()),
    };
    let proved = ours.judge(picked, expected, &own.secret, name, response)?;
    Ok(Trust::Proved(proved))
}
