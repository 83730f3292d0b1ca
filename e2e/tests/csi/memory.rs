//! The backend in memory, which the other tests of the driver stand on.

use crate::contract::{World, keep};
use sheep_csi::{Backend, Memory, Volume};

const NODES: [&str; 2] = ["aa", "bb"];

struct InMemory(Memory);

#[tonic::async_trait]
impl World for InMemory {
    fn backend(&self) -> &dyn Backend {
        &self.0
    }

    fn nodes(&self) -> [String; 2] {
        NODES.map(str::to_owned)
    }

    async fn write(&self, volume: &Volume) {
        self.0.write(volume.id);
    }

    /// A copy reads nothing from its origin here.
    async fn flatten(&self, _: &Volume) {}
}

#[tokio::test]
async fn the_backend_in_memory_keeps_the_contract() {
    keep(&InMemory(Memory::new(&NODES))).await;
}
