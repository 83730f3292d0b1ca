//! Open volumes and who uses them. All users of a VDI on this node share one volume, so that one flush covers
//! them all; it is closed, and its lock released, when the last one has gone.

use crate::handle::{OpenVolume, VolumeAccessError};
use mio::Token;
use sheep_state::Refusal;
use sheep_types::{LogIndex, Time, VdiId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::oneshot;

/// A volume that another node holds is asked for again during this time: that node may be giving it back, to the very
/// client that now comes here.
const HANDOVER: Duration = Duration::from_secs(1);
/// And so long as long as the cluster does not know of this run of the node: it has just been started.
const ANNOUNCED: Duration = Duration::from_secs(15);
/// And so long while it is held only to be flattened: its holder closes it.
const GIVEN_BACK: Duration = Duration::from_secs(20);
/// Wait before it is asked for again.
const AGAIN: Duration = Duration::from_millis(20);

/// Names a volume at the gateway, and at most one at a time.
pub(crate) type VolumeId = u64;

/// An open volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) size: u64,
    pub(super) read_only: bool,
}

/// Who waits for a volume to be opened.
pub(super) enum Waiter {
    /// An NBD client, perhaps under one attachment only.
    Client(Token, Option<LogIndex>),
    /// A call of the control API.
    Api(oneshot::Sender<Result<OpenVolume, VolumeAccessError>>),
}

enum State {
    Opening(Vec<Waiter>),
    Open(Opened),
    /// Open, or being opened, for nobody: it is flattened.
    Background,
    /// Being closed; whoever wants it meanwhile waits and it is opened anew.
    Closing(Vec<Waiter>),
}

struct Volume {
    vdi: VdiId,
    read_only: bool,
    users: usize,
    state: State,
    /// Its user shares it with nobody.
    alone: bool,
    /// Who waits until that user has gone, or it is closed; and whether only to read.
    later: Vec<(bool, Waiter)>,
    /// When it was first asked for.
    since: Option<Time>,
    /// Refused, and to be asked for again then.
    again: Option<Time>,
}

impl Volume {
    fn new(vdi: VdiId, read_only: bool, state: State) -> Self {
        Self { vdi, read_only, users: 0, state, alone: false, later: Vec::new(), since: None, again: None }
    }

    /// Nobody uses it any more: who waited for that gets it next.
    fn close(&mut self) {
        self.alone = false;
        self.state = State::Closing(self.take_later());
    }

    /// Those who wait until it is free and want it in the mode that it has.
    fn take_later(&mut self) -> Vec<Waiter> {
        let later = std::mem::take(&mut self.later).into_iter();
        let (same, others) = later.partition(|(read_only, _)| *read_only == self.read_only);
        self.later = others;
        let same: Vec<(bool, Waiter)> = same;
        same.into_iter().map(|(_, waiter)| waiter).collect()
    }
}

/// What the data thread has to do at the gateway.
pub(super) enum Action {
    Open { volume: VolumeId, vdi: VdiId, read_only: bool },
    Flatten { volume: VolumeId, vdi: VdiId },
    Close(VolumeId),
    Nothing,
}

/// All volumes of this node.
#[derive(Default)]
pub(super) struct Volumes {
    volumes: BTreeMap<VolumeId, Volume>,
    last: VolumeId,
}

impl Volumes {
    pub(super) fn len(&self) -> usize {
        self.volumes.len()
    }

    /// Whether somebody on this node uses the VDI, or waits for it.
    pub(super) fn is_used(&self, vdi: VdiId) -> bool {
        let used = |volume: &Volume| match &volume.state {
            State::Background => false,
            State::Closing(waiters) => !waiters.is_empty() || !volume.later.is_empty(),
            State::Opening(_) | State::Open(_) => true,
        };
        self.volumes.values().any(|volume| volume.vdi == vdi && used(volume))
    }

    /// Somebody wants the VDI. If it is open already, the waiter comes back with what is known. Who wants it `alone` has
    /// seen that nobody uses it; whoever comes later gets it when he has gone.
    pub(super) fn want(
        &mut self,
        vdi: VdiId,
        read_only: bool,
        alone: bool,
        waiter: Waiter,
    ) -> (Action, Option<(Waiter, VolumeId, Opened)>) {
        // What will be free soon is waited for, whoever has it; else one node has a VDI in one mode.
        let is_background = |volume: &Volume| matches!(volume.state, State::Background);
        let ends = |volume: &Volume| volume.alone || matches!(volume.state, State::Closing(_));
        let same = |volume: &Volume| volume.read_only == read_only || is_background(volume);
        let known = self.volumes.iter_mut().find(|(_, v)| v.vdi == vdi && (same(v) || !alone && ends(v)));
        if let Some((id, volume)) = known {
            if volume.alone || !same(volume) {
                volume.later.push((read_only, waiter));
                return (Action::Nothing, None);
            }
            volume.alone = alone;
            match &mut volume.state {
                State::Background => {
                    volume.read_only = read_only;
                    volume.state = State::Closing(vec![waiter]);
                    return (Action::Close(*id), None);
                }
                State::Opening(waiters) | State::Closing(waiters) => waiters.push(waiter),
                State::Open(opened) => {
                    volume.users += 1;
                    return (Action::Nothing, Some((waiter, *id, *opened)));
                }
            }
            return (Action::Nothing, None);
        }
        (self.open(vdi, read_only, alone, vec![waiter]), None)
    }

    /// Nobody wants the VDI, but it is to be flattened.
    pub(super) fn flatten(&mut self, vdi: VdiId) -> Action {
        if self.volumes.values().any(|volume| volume.vdi == vdi) {
            return Action::Nothing;
        }
        self.last += 1;
        let state = State::Background;
        let volume = Volume::new(vdi, false, state);
        self.volumes.insert(self.last, volume);
        Action::Flatten { volume: self.last, vdi }
    }

    /// Volumes that are open for nobody.
    pub(super) fn in_background(&self) -> usize {
        self.volumes.values().filter(|volume| matches!(volume.state, State::Background)).count()
    }

    /// Whether it is being closed.
    pub(super) fn is_closing(&self, id: VolumeId) -> bool {
        self.volumes.get(&id).is_some_and(|volume| matches!(volume.state, State::Closing(_)))
    }

    /// The VDI of a volume.
    pub(super) fn vdi(&self, id: VolumeId) -> Option<VdiId> {
        self.volumes.get(&id).map(|volume| volume.vdi)
    }

    fn open(&mut self, vdi: VdiId, read_only: bool, alone: bool, waiters: Vec<Waiter>) -> Action {
        self.last += 1;
        let volume = Volume { alone, ..Volume::new(vdi, read_only, State::Opening(waiters)) };
        self.volumes.insert(self.last, volume);
        Action::Open { volume: self.last, vdi, read_only }
    }

    /// The gateway has opened it: who waited.
    pub(super) fn opened(&mut self, id: VolumeId, opened: Opened) -> Vec<Waiter> {
        let Some(volume) = self.volumes.get_mut(&id) else { return Vec::new() };
        if !matches!(volume.state, State::Opening(_)) {
            return Vec::new();
        }
        match core::mem::replace(&mut volume.state, State::Open(opened)) {
            State::Opening(waiters) => {
                volume.users = waiters.len();
                waiters
            }
            State::Open(_) | State::Background | State::Closing(_) => Vec::new(),
        }
    }

    /// The gateway could not open it: who waited.
    pub(super) fn failed(&mut self, id: VolumeId) -> Vec<Waiter> {
        let Some(Volume { state, later, .. }) = self.volumes.remove(&id) else { return Vec::new() };
        let later = later.into_iter().map(|(_, waiter)| waiter);
        match state {
            State::Opening(waiters) | State::Closing(waiters) => waiters.into_iter().chain(later).collect(),
            State::Open(_) | State::Background => later.collect(),
        }
    }

    /// The lock was refused. Whether it will be asked for again; else it has failed. `given_back`: who holds it closes it.
    pub(super) fn refused(&mut self, id: VolumeId, why: &Refusal, given_back: bool, now: Time) -> bool {
        let patience = match why {
            Refusal::Locked { .. } if given_back => GIVEN_BACK,
            Refusal::Locked { .. } => HANDOVER,
            Refusal::NodeNotUp(_) => ANNOUNCED,
            _ => return false,
        };
        let Some(volume) = self.volumes.get_mut(&id) else { return false };
        let since = *volume.since.get_or_insert(now);
        if now.since(since) >= patience || !matches!(volume.state, State::Opening(_)) {
            return false;
        }
        volume.again = Some(now + AGAIN);
        true
    }

    /// When something is to be asked for again.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.volumes.values().filter_map(|volume| volume.again).min()
    }

    /// What is to be asked for again by now.
    pub(super) fn due(&mut self, now: Time) -> Vec<Action> {
        let due = self.volumes.iter_mut().filter(|(_, volume)| volume.again.is_some_and(|at| at <= now));
        due.map(|(id, volume)| {
            volume.again = None;
            Action::Open { volume: *id, vdi: volume.vdi, read_only: volume.read_only }
        })
        .collect()
    }

    /// A user has gone.
    pub(super) fn release(&mut self, id: VolumeId) -> Action {
        let Some(volume) = self.volumes.get_mut(&id) else { return Action::Nothing };
        volume.users = volume.users.saturating_sub(1);
        if volume.users == 0 && matches!(volume.state, State::Open(_)) {
            volume.close();
            return Action::Close(id);
        }
        Action::Nothing
    }

    /// The gateway serves it no longer: its users are told elsewhere; the handle is to be closed.
    pub(super) fn lost(&mut self, id: VolumeId) -> Action {
        match self.volumes.get_mut(&id) {
            Some(volume) if matches!(volume.state, State::Open(_) | State::Background) => {
                volume.close();
                Action::Close(id)
            }
            Some(_) | None => Action::Nothing,
        }
    }

    /// The gateway has closed it; it is opened again if somebody has come meanwhile. Who wants it in the other mode gets it if
    /// nobody else has come, and else is told that there is only one at a time.
    pub(super) fn closed(&mut self, id: VolumeId) -> Vec<Action> {
        let Some(Volume { vdi, read_only, alone, later, state: State::Closing(waiters), .. }) =
            self.volumes.remove(&id)
        else {
            return Vec::new();
        };
        let mut actions = Vec::new();
        if !waiters.is_empty() {
            actions.push(self.open(vdi, read_only, alone, waiters));
            if let Some(volume) = self.volumes.get_mut(&self.last).filter(|_| alone) {
                volume.later = later;
                return actions;
            }
        }
        // All of them want the other mode.
        let others: Vec<Waiter> = later.into_iter().map(|(_, waiter)| waiter).collect();
        if !others.is_empty() {
            actions.push(self.open(vdi, !read_only, false, others));
        }
        actions
    }

    /// Changes what later users are told of the size.
    pub(super) fn resized(&mut self, id: VolumeId, size: u64) {
        if let Some(Volume { state: State::Open(opened), .. }) = self.volumes.get_mut(&id) {
            opened.size = size;
        }
    }

    /// All that are being opened.
    pub(super) fn opening(&self) -> impl Iterator<Item = (VolumeId, VdiId)> {
        let opening = self.volumes.iter().filter(|(_, volume)| matches!(volume.state, State::Opening(_)));
        opening.map(|(id, volume)| (*id, volume.vdi))
    }

    /// All that are open or being opened.
    pub(super) fn ids(&self) -> Vec<VolumeId> {
        self.volumes.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::{Generation, Incarnation, Member, NodeId};

    const OPENED: Opened = Opened { size: 1, read_only: false };

    fn client(n: usize) -> Waiter {
        Waiter::Client(Token(n), None)
    }

    /// It is closed, and opened anew for who has waited.
    fn reopened(volumes: &mut Volumes, id: VolumeId, wanted: bool) -> VolumeId {
        let actions = volumes.closed(id);
        let [Action::Open { volume, read_only, .. }] = actions[..] else {
            panic!("{} opened", actions.len())
        };
        assert_eq!(read_only, wanted);
        volume
    }

    #[test]
    fn users_share_a_volume_and_the_last_one_closes_it() {
        let mut volumes = Volumes::default();
        let (Action::Open { volume, .. }, None) = volumes.want(VdiId(1), false, false, client(1)) else {
            panic!()
        };
        assert!(matches!(volumes.want(VdiId(1), false, false, client(2)), (Action::Nothing, None)));
        assert_eq!(volumes.opened(volume, OPENED).len(), 2);
        assert!(matches!(volumes.want(VdiId(1), false, false, client(3)), (Action::Nothing, Some(_))));
        assert!(matches!(volumes.release(volume), Action::Nothing));
        assert!(matches!(volumes.release(volume), Action::Nothing));
        assert!(matches!(volumes.release(volume), Action::Close(id) if id == volume));
        assert!(volumes.closed(volume).is_empty());
        assert_eq!(volumes.len(), 0);
    }

    #[test]
    fn a_volume_that_is_held_elsewhere_is_asked_for_again_for_a_while() {
        let mut volumes = Volumes::default();
        let (Action::Open { volume, .. }, _) = volumes.want(VdiId(1), false, false, client(1)) else {
            panic!()
        };
        let (mut now, mut asked) = (Time::from_nanos(5), 0);
        let holder = Member { node: NodeId(2), incarnation: Incarnation(1) };
        let locked = Refusal::Locked { holder, generation: Generation(1) };
        assert!(!volumes.refused(volume, &Refusal::NoSuchVdi, false, now), "that does not get better");
        while volumes.refused(volume, &locked, false, now) {
            assert!(volumes.due(now).is_empty());
            now = volumes.next_timeout().unwrap();
            let due = volumes.due(now);
            assert!(matches!(due[..], [Action::Open { volume: again, .. }] if again == volume));
            assert_eq!(volumes.next_timeout(), None);
            asked += 1;
        }
        assert!(asked > 10 && now.since(Time::from_nanos(5)) < HANDOVER * 2, "{asked}");
        assert!(volumes.refused(volume, &Refusal::NodeNotUp(NodeId(1)), false, now));
        assert!(volumes.refused(volume, &locked, true, now), "who flattens it gives it back");
        assert_eq!(volumes.failed(volume).len(), 1);
    }

    #[test]
    fn who_comes_while_it_is_flattened_gets_it_as_soon_as_it_is_closed() {
        let mut volumes = Volumes::default();
        let Action::Flatten { volume, .. } = volumes.flatten(VdiId(1)) else { panic!() };
        assert!(matches!(volumes.flatten(VdiId(1)), Action::Nothing));
        assert!(volumes.opened(volume, OPENED).is_empty() && volumes.in_background() == 1);
        assert!(
            matches!(volumes.want(VdiId(1), true, false, client(1)), (Action::Close(id), None) if id == volume)
        );
        assert!(volumes.opened(volume, OPENED).is_empty(), "it was about to be opened");
        assert!(volumes.is_closing(volume));
        let again = reopened(&mut volumes, volume, true);
        assert_eq!((volumes.opened(again, OPENED).len(), volumes.in_background()), (1, 0));
    }

    #[test]
    fn who_comes_while_it_closes_gets_it_anew() {
        let mut volumes = Volumes::default();
        let (Action::Open { volume, .. }, _) = volumes.want(VdiId(1), false, false, client(1)) else {
            panic!()
        };
        volumes.opened(volume, OPENED);
        assert!(matches!(volumes.lost(volume), Action::Close(_)));
        assert!(matches!(volumes.want(VdiId(1), false, false, client(2)), (Action::Nothing, None)));
        let again = reopened(&mut volumes, volume, false);
        assert_ne!(again, volume);
        assert_eq!(volumes.opened(again, OPENED).len(), 1);
    }

    #[test]
    fn who_wants_it_alone_gets_it_alone() {
        let mut volumes = Volumes::default();
        let (vdi, none) = (VdiId(1), VdiId(2));
        assert!(!volumes.is_used(vdi));
        let (Action::Open { volume, .. }, None) = volumes.want(vdi, false, true, client(1)) else { panic!() };
        assert!(volumes.is_used(vdi) && !volumes.is_used(none));
        assert!(matches!(volumes.want(vdi, false, false, client(2)), (Action::Nothing, None)));
        assert_eq!(volumes.opened(volume, OPENED).len(), 1);
        assert!(matches!(volumes.want(vdi, false, false, client(3)), (Action::Nothing, None)));
        // They get it, under another lock, when the first one has gone.
        assert!(matches!(volumes.release(volume), Action::Close(id) if id == volume));
        assert!(volumes.is_used(vdi), "others wait");
        let again = reopened(&mut volumes, volume, false);
        assert_eq!(volumes.opened(again, OPENED).len(), 2);
        assert!(matches!(volumes.want(vdi, false, false, client(4)), (Action::Nothing, Some(_))));
    }

    #[test]
    fn who_flattens_gives_way_to_who_wants_it_alone_too() {
        let mut volumes = Volumes::default();
        let Action::Flatten { volume, .. } = volumes.flatten(VdiId(1)) else { panic!() };
        volumes.opened(volume, OPENED);
        assert!(!volumes.is_used(VdiId(1)));
        assert!(matches!(volumes.want(VdiId(1), false, true, client(1)), (Action::Close(_), None)));
        assert!(matches!(volumes.want(VdiId(1), false, false, client(2)), (Action::Nothing, None)));
        let again = reopened(&mut volumes, volume, false);
        assert_eq!(volumes.opened(again, OPENED).len(), 1);
        volumes.release(again);
        let last = reopened(&mut volumes, again, false);
        assert_eq!(volumes.failed(last).len(), 1);
    }

    /// A reader waits as a writer does for who has it alone, and for a close.
    #[test]
    fn who_wants_to_read_waits_for_who_has_it_alone() {
        let (mut volumes, vdi) = (Volumes::default(), VdiId(1));
        let (Action::Open { volume, .. }, None) = volumes.want(vdi, false, true, client(1)) else { panic!() };
        volumes.opened(volume, OPENED);
        assert!(matches!(volumes.want(vdi, true, false, client(2)), (Action::Nothing, None)));
        assert!(matches!(volumes.release(volume), Action::Close(id) if id == volume));
        assert!(volumes.is_used(vdi), "a reader waits");
        assert!(matches!(volumes.want(vdi, true, false, client(3)), (Action::Nothing, None)));
        let read = reopened(&mut volumes, volume, true);
        assert_eq!(volumes.opened(read, OPENED).len(), 2);
        // While somebody merely uses it, it is not waited for.
        assert!(matches!(volumes.want(vdi, false, false, client(4)), (Action::Open { .. }, None)));
    }

    #[test]
    fn of_those_who_have_waited_each_is_told() {
        let (mut volumes, vdi) = (Volumes::default(), VdiId(1));
        let (Action::Open { volume, .. }, None) = volumes.want(vdi, false, true, client(1)) else { panic!() };
        volumes.opened(volume, OPENED);
        for (number, read_only) in [(2, true), (3, false), (4, true)] {
            assert!(matches!(volumes.want(vdi, read_only, false, client(number)), (Action::Nothing, None)));
        }
        volumes.release(volume);
        let actions = volumes.closed(volume);
        let [
            Action::Open { volume: one, read_only: false, .. },
            Action::Open { volume: other, read_only: true, .. },
        ] = actions[..]
        else {
            panic!()
        };
        // The gateway has one at a time.
        assert_eq!((volumes.failed(other).len(), volumes.opened(one, OPENED).len()), (2, 1));
    }
}
