//! The disks under the data thread: opened, failed, plugged in, emptied and taken away.

use super::DataThread;
use super::disk::DiskDriver;
use crate::disks::DiskSpec;
use crate::handle::{DataStatus, DiskRequest, DiskStatus};
use sheep_datapath::Shard;
use sheep_store::{Condition, StoreConfig, StoreError, StoreIdentity};
use sheep_types::{ClusterId, Time};
use std::path::PathBuf;
use tracing::{error, info};

impl DataThread {
    pub(super) fn store_of(&self, cluster: ClusterId, disk: &DiskSpec) -> (StoreConfig, StoreIdentity) {
        let geometry = self.view.as_ref().map(|view| view.state.geometry()).unwrap_or_default();
        let identity = StoreIdentity { cluster, node: self.me.node, store: disk.id };
        // On a device there is no filesystem that would note what has been written, and in the page cache zeros would
        // only be in the way.
        let prewrite = disk.path.is_dir() && self.disk.as_ref().is_some_and(DiskDriver::is_direct);
        let config = StoreConfig { prewrite, ..StoreConfig::new(geometry, disk.capacity) };
        (config, identity)
    }

    pub(super) fn attach(&mut self, slot: u8, path: PathBuf) {
        if let Some(driver) = &mut self.disk {
            driver.attach(slot, path.clone());
        }
        self.slots.insert(slot, path);
    }

    /// Disks come and go.
    pub(super) fn disk_request(&mut self, now: Time, request: DiskRequest) {
        let replica = self.shard.as_mut().and_then(Shard::replica_mut);
        let (answer, done) = match (request, replica) {
            (DiskRequest::Plug { disk, answer }, Some(_)) => (answer, self.plug(now, disk)),
            (DiskRequest::Empty { id, answer }, Some(replica)) => {
                (answer, replica.set_disk_weight(now, id, 0))
            }
            (DiskRequest::GiveUp { id, answer }, Some(replica)) => (answer, replica.give_up_disk(now, id)),
            (
                DiskRequest::Plug { answer, .. }
                | DiskRequest::Empty { answer, .. }
                | DiskRequest::GiveUp { answer, .. },
                None,
            ) => (answer, false),
        };
        // Who asked may have gone.
        let _ = answer.send(done);
    }

    fn plug(&mut self, now: Time, disk: DiskSpec) -> bool {
        let Some(cluster) = self.view.as_ref().map(|view| view.cluster) else { return false };
        let (config, identity) = self.store_of(cluster, &disk);
        let replica = self.shard.as_mut().and_then(Shard::replica_mut);
        let slot =
            replica.and_then(|replica| replica.add_disk(now, config, identity, disk.fresh, disk.weight));
        if let Some(slot) = slot {
            self.attach(slot, disk.path);
            self.unlisted = true;
        }
        slot.is_some()
    }

    /// Says how the disks are, and once all are in use, lists them as such.
    pub(super) fn describe_disks(&mut self, status: &mut DataStatus) {
        let Some(replica) = self.shard.as_ref().and_then(Shard::replica) else { return };
        status.moved = replica.moved();
        status.disks = replica
            .store()
            .disks()
            .map(|disk| DiskStatus {
                path: self.slots.get(&disk.slot).cloned().unwrap_or_default(),
                objects: replica.objects_on(disk.slot),
                disk,
            })
            .collect();
        let starting = status.disks.iter().any(|found| found.disk.condition == Condition::Starting);
        if self.unlisted && !starting {
            self.unlisted = false;
            let working = status.disks.iter().filter(|found| found.disk.condition == Condition::Working);
            let ids: Vec<u64> = working.map(|found| found.disk.id).collect();
            if let Err(problem) = self.disk_control.list().made(&ids) {
                error!("{problem:#}");
            }
        }
    }

    /// A disk, not the last one, is not used any more.
    pub(super) fn disk_failed(&mut self, slot: u8, why: &StoreError) {
        if let Some(driver) = &mut self.disk {
            driver.detach(slot);
        }
        let path = self.slots.get(&slot).cloned().unwrap_or_default();
        if *why == StoreError::Closed {
            info!(disk = %path.display(), "disk taken away");
        } else {
            error!(disk = %path.display(), "disk failed: {why}; the node goes on with the others");
        }
    }

    pub(super) fn store_failed(&mut self) {
        let replica = self.shard.as_ref().and_then(Shard::replica);
        let why = replica.and_then(|replica| replica.store_failure()).map(ToString::to_string);
        let why = why.unwrap_or_else(|| "unknown reason".into());
        let paths: Vec<String> = self.slots.values().map(|path| path.display().to_string()).collect();
        let problem = format!("the object store {} has failed: {why}", paths.join(", "));
        error!("{problem}; this run of the node ends");
        self.failed = Some(problem);
        let _ = self.stop.send(self.failed.clone());
    }
}
