//! Task management functions: the owner's and the ladder's.
//!
//! ```text
//!  function            goes out on          ends at "complete"
//!  ABORT TASK          the task's           the task (also at "does not exist")
//!  ABORT TASK SET,     any                  our tasks of the LUN that were sent before
//!  CLEAR TASK SET,
//!  LOGICAL UNIT RESET
//!  TARGET ... RESET    any                  all our tasks that were sent before
//!  CLEAR ACA           any                  none
//! ```
//!
//! A task that ends so gets the status TASK ABORTED, and its owner may repeat it: its tag is
//! remembered, and what the target still says of it is consumed. Until the answer comes its data goes
//! on (RFC 7143 §4.2.3.3, F32: transfer tags are answered even after the request), and commands wait that
//! could be taken for affected ones.
//!
//! "The task does not exist" means for us that it has ended without a word: answers on one connection
//! come in order (RFC 7143 §4.2.2.2), so that a status of the task would have come before.
//!
//! Source: RFC 7143 §4.2.3, §11.5, §11.6.

use std::time::Instant;

use super::connection::{Control, State};
use super::{Completed, Event, FUNCTION_SLOT, Misuse, Session, SessionError, Violation};
use crate::proto::task::Task;
use crate::scsi::Status;
use crate::wire::serial::{CmdSn, DataSn, StatSn};
use crate::wire::tag::InitiatorTaskTag;
use crate::wire::task_management::{
    TaskManagementFunction, TaskManagementOutcome, TaskManagementRequest, TaskManagementResponse,
};

/// Most functions under way, the ladder's among them; a person or a cluster asks for one at a time.
const FUNCTIONS_MAX: usize = 8;

/// A function under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    tag: InitiatorTaskTag,
    code: TaskManagementFunction,
    lun: u64,
    /// The task to abort.
    task: Option<InitiatorTaskTag>,
    cid: u16,
    /// As it left; commands of later numbers are not affected.
    cmd_sn: Option<CmdSn>,
    is_ladders: bool,
    /// Since when it is under way, as the ladder saw it.
    since: Option<Instant>,
}

impl Session {
    /// Queues a task management function; `FunctionEnded` tells its end under the tag given here.
    /// `slot` is the task that ABORT TASK is for; the others have none.
    ///
    /// # Errors
    /// A function that needs a task or a higher error recovery level, or too many at once.
    pub fn handle_task_management(
        &mut self,
        function: TaskManagementFunction,
        lun: u64,
        slot: Option<u16>,
    ) -> Result<InitiatorTaskTag, Misuse> {
        // RFC 7143 §7.2.2 (E6): reassignment is for error recovery level 2
        if function == TaskManagementFunction::TASK_REASSIGN {
            return Err(Misuse::RecoveryLevel);
        }
        if function != TaskManagementFunction::ABORT_TASK {
            return self.queue_function(function, lun, None, false);
        }
        let slot = slot.ok_or(Misuse::NoTask)?;
        if let Some(itt) = self.tasks.sent_tag(slot) {
            return self.queue_function(function, lun, Some(itt), false);
        }
        let outcome = if self.tasks.is_queued(slot) {
            // The target has never heard of it.
            self.ready.retain(|queued| *queued != slot);
            self.tasks.remove(slot);
            self.events.push_back(Event::Completed(aborted(slot)));
            TaskManagementOutcome::COMPLETE
        } else {
            TaskManagementOutcome::TASK_DOES_NOT_EXIST
        };
        let tag = self.next_tag(FUNCTION_SLOT);
        let event = Event::FunctionEnded { tag, outcome };
        self.events.push_back(event);
        Ok(tag)
    }

    /// Queues a function for `task`, or for `lun`.
    pub(super) fn queue_function(
        &mut self,
        function: TaskManagementFunction,
        lun: u64,
        task: Option<InitiatorTaskTag>,
        is_ladders: bool,
    ) -> Result<InitiatorTaskTag, Misuse> {
        if self.functions.len() >= FUNCTIONS_MAX {
            return Err(Misuse::TooManyFunctions);
        }
        // RFC 7143 §4.2.5.1: ABORT TASK goes where the task went, and carries its LUN
        let of_task = task.and_then(|itt| self.tasks.find(itt).ok());
        let (cid, lun) = if let Some((_, task)) = of_task {
            (task.cid, task.lun)
        } else {
            let is_up = |cid: &u16| self.at_ref(*cid).state == State::LoggedIn;
            let cid = self.cids().find(is_up).ok_or(Misuse::NoConnection)?;
            (cid, if is_of_target(function) { 0 } else { lun })
        };
        let tag = self.next_tag(FUNCTION_SLOT);
        self.functions.push(Function {
            tag,
            code: function,
            lun,
            task,
            cid,
            cmd_sn: None,
            is_ladders,
            since: None,
        });
        self.at(cid).control.push_back(Control::Function(tag));
        Ok(tag)
    }

    /// The request as it leaves; `None` if its task has ended meanwhile.
    pub(super) fn function_request(
        &mut self,
        tag: InitiatorTaskTag,
        cmd_sn: CmdSn,
        exp_stat_sn: StatSn,
    ) -> Option<TaskManagementRequest> {
        let at = self.functions.iter().position(|known| known.tag == tag)?;
        let of_task = match self.functions[at].task.map(|itt| self.tasks.find(itt)) {
            None => None,
            Some(Ok((_, task))) => Some(task.cmd_sn),
            Some(Err(_)) => {
                let function = self.functions.swap_remove(at);
                self.end_function(&function, TaskManagementOutcome::TASK_DOES_NOT_EXIST);
                return None;
            }
        };
        let function = &mut self.functions[at];
        function.cmd_sn = Some(cmd_sn);
        Some(TaskManagementRequest {
            // RFC 7143 §11.5, §11.2.1.1 (F2): a function overtakes the commands that it is about
            immediate: true,
            function: function.code,
            lun: function.lun,
            initiator_task_tag: tag,
            // RFC 7143 §11.5.4, §11.5.5 (F31): tag and number of the task, or the reserved value
            referenced_task_tag: function.task.unwrap_or(InitiatorTaskTag::RESERVED),
            cmd_sn,
            exp_stat_sn,
            ref_cmd_sn: of_task.unwrap_or_default(),
            exp_data_sn: DataSn(0),
        })
    }

    pub(super) fn handle_function_response(
        &mut self,
        cid: u16,
        response: &TaskManagementResponse,
    ) -> Result<Option<Event>, SessionError> {
        // Nobody waits for an acknowledgement of this one.
        self.at(cid).count_status(response.numbers)?;
        let tag = response.initiator_task_tag;
        self.answer_function(cid, tag, response.response)?;
        Ok(None)
    }

    /// A function was answered, by its response or by a Reject.
    pub(super) fn answer_function(
        &mut self,
        cid: u16,
        tag: InitiatorTaskTag,
        outcome: TaskManagementOutcome,
    ) -> Result<(), Violation> {
        let is_it = |function: &Function| {
            function.tag == tag && function.cid == cid && function.cmd_sn.is_some()
        };
        let at = self.functions.iter().position(is_it);
        let at = at.ok_or(Violation::UnknownTask(tag.0))?;
        let function = self.functions.swap_remove(at);
        self.end_function(&function, outcome);
        Ok(())
    }

    /// Whether commands have to wait: one that leaves while a function is under way that ends many
    /// tasks may be ended by it or not, and nobody could tell.
    pub(super) fn holds_commands(&self) -> bool {
        self.functions
            .iter()
            .any(|function| ends_many(function.code))
    }

    /// The function that waits longest for its answer: the owner's, and those of the ladder that hold up commands.
    /// A climb times its own, but it ends when its task does, and the function may not be answered all the same.
    pub(super) fn oldest_function(
        &mut self,
        now: Instant,
    ) -> Option<(Instant, TaskManagementFunction)> {
        self.functions
            .iter_mut()
            .filter(|function| !function.is_ladders || ends_many(function.code))
            .map(|function| (*function.since.get_or_insert(now), function.code))
            .min_by_key(|(since, _)| *since)
    }

    /// Ends all sent tasks that `is_affected`.
    pub(super) fn abort_tasks(&mut self, is_affected: impl Fn(&Task) -> bool) {
        let slots: Vec<u16> = self
            .tasks
            .sent_slots()
            .filter(|slot| is_affected(self.tasks.task(*slot)))
            .collect();
        for slot in slots {
            let cid = self.tasks.task(slot).cid;
            self.tasks.abort(slot);
            self.at(cid).sent -= 1;
            self.events.push_back(Event::Completed(aborted(slot)));
            self.log_out_when_idle(cid);
        }
    }

    // RFC 7143 §11.6.1 (F33): what each response means for the tasks; "complete" alone ends any, but for
    // ABORT TASK, whose task is gone as well if the target does not know it. All others leave the
    // tasks as they are: the owner reads the outcome, and the ladder takes its next step.
    fn end_function(&mut self, function: &Function, outcome: TaskManagementOutcome) {
        let is_complete = outcome == TaskManagementOutcome::COMPLETE;
        let is_unknown = outcome == TaskManagementOutcome::TASK_DOES_NOT_EXIST;
        let sent_before = |task: &Task| {
            function
                .cmd_sn
                .is_some_and(|cmd_sn| task.cmd_sn.precedes(cmd_sn))
        };
        match function.code {
            TaskManagementFunction::ABORT_TASK if is_complete || is_unknown => {
                let found = function.task.and_then(|itt| self.tasks.find(itt).ok());
                if let Some(cmd_sn) = found.map(|(_, task)| task.cmd_sn) {
                    self.abort_tasks(|task| task.cmd_sn == cmd_sn);
                }
            }
            TaskManagementFunction::ABORT_TASK_SET
            | TaskManagementFunction::CLEAR_TASK_SET
            | TaskManagementFunction::LOGICAL_UNIT_RESET
                if is_complete =>
            {
                self.abort_tasks(|task| task.lun == function.lun && sent_before(task));
            }
            TaskManagementFunction::TARGET_WARM_RESET
            | TaskManagementFunction::TARGET_COLD_RESET
                if is_complete =>
            {
                self.abort_tasks(sent_before);
            }
            TaskManagementFunction(_) => {}
        }
        if function.is_ladders {
            self.ladder.answered(function.tag, outcome);
        } else {
            self.events.push_back(Event::FunctionEnded {
                tag: function.tag,
                outcome,
            });
        }
    }
}

fn ends_many(function: TaskManagementFunction) -> bool {
    !matches!(
        function,
        TaskManagementFunction::ABORT_TASK | TaskManagementFunction::CLEAR_ACA
    )
}

/// RFC 7143 §11.5.3: these have no LUN.
fn is_of_target(function: TaskManagementFunction) -> bool {
    matches!(
        function,
        TaskManagementFunction::TARGET_WARM_RESET | TaskManagementFunction::TARGET_COLD_RESET
    )
}

fn aborted(slot: u16) -> Completed {
    Completed {
        slot,
        response: None,
        status: Status::TASK_ABORTED,
        sense: None,
        transferred: 0,
        overflow: 0,
    }
}
