//! The launches of attention: what writes keys and values where nothing else does, and what attends.

use super::{Columns, Manners, Sequence, floats};
use crate::attend_plan::LIMITS;
use crate::held::NormUse;
use crate::kernels::attend::AttendVariant;
use crate::kernels::heads::Rotary;
use crate::kernels::kv_store::StoreVariant;
use crate::kernels::variant::Norming;
use crate::launch::{Arg, Element, Extent, Kernel, Launch};
use crate::program_plan::Role;
use cubecl::server::Handle;
use halfbyte_backend::gpu::{KeyTile, SPLIT_KEYS};
use halfbyte_backend::{Attend, Fault, Pairing};

impl Sequence<'_> {
    /// The launches of step `index`.
    pub(super) fn attend(
        &self,
        index: usize,
        step: &Attend,
        manners: Manners,
        out: &mut Vec<Launch>,
    ) -> Result<(), Fault> {
        let plan = self.plan.attends.get(&index);
        let plan = plan.ok_or_else(|| Fault::Internal(format!("step {index} has no plan")))?;
        let (keys_buffer, values_buffer, slots, ring) = match step.cache {
            Some(id) => {
                let (keys, values, shape) = self.wants.kv(id)?;
                (keys, values, shape.slots(), shape.ring.is_some())
            }
            None => (self.buffer(Role::Keys)?, self.buffer(Role::Values)?, self.caps.rows, false),
        };
        let few = manners.columns != Columns::Many;
        let parts = few && plan.parts;
        let qkv = self.register(step.qkv)?;
        let rope = step.rope.map(|rope| self.wants.rope(rope.table)).transpose()?;
        let rotary = step
            .rope
            .zip(rope)
            .map(|(rope, (_, pairs))| Rotary { pairs, adjacent: rope.pairing == Pairing::Adjacent });
        let (q_norm, k_norm) = (self.norm(step.q_norm.as_ref())?, self.norm(step.k_norm.as_ref())?);
        let norming = |norm: &Option<NormUse>| norm.as_ref().map_or(Norming::None, |norm| norm.norming);
        let weight = |norm: &Option<NormUse>| floats(norm.as_ref().map_or(qkv, |norm| &norm.weight));
        let eps = |norm: &Option<NormUse>| Arg::F32(norm.as_ref().map_or(0.0, |norm| norm.eps));
        let offset = |norm: &Option<NormUse>| Arg::F32(norm.as_ref().map_or(0.0, |norm| norm.offset));
        let words = |handle: &Handle| Arg::Array(handle.clone(), Element::U32);
        let number = |value: usize| Arg::U32(value as u32);
        let qkv_stride = number(self.stride(step.qkv)?);
        let key_at = number(step.heads * step.head_dim);
        let value_at = number((step.heads + step.kv_heads) * step.head_dim);
        let table = floats(rope.map_or(qkv, |(table, _)| table));
        let encoder = step.cache.is_none();

        if !manners.fresh {
            let kernel = Kernel::KvStore(StoreVariant {
                record: plan.record,
                rotary,
                norm: norming(&k_norm),
                encoder,
                ring,
            });
            let args = vec![
                floats(qkv),
                table.clone(),
                weight(&k_norm),
                Arg::Places,
                words(keys_buffer),
                words(values_buffer),
                qkv_stride.clone(),
                key_at.clone(),
                value_at.clone(),
                number(step.kv_heads),
                number(slots),
                eps(&k_norm),
                offset(&k_norm),
            ];
            let grid = [Extent::Fixed(step.kv_heads as u32), Extent::Rows(1), Extent::Fixed(1)];
            out.push(Launch { kernel, args, grid });
        }

        let tile_rows = if few { 1 } else { self.plan.tile_rows };
        // The plan admits only sizes that fit.
        let tile = LIMITS.keys(tile_rows * plan.heads_here, plan.record).unwrap_or(KeyTile::LEAST);
        let splits = if parts { plan.splits } else { 1 };
        let kernel = Kernel::Attend(AttendVariant {
            record: plan.record,
            rotary,
            q_norm: norming(&q_norm),
            k_norm: if manners.fresh { norming(&k_norm) } else { Norming::None },
            fresh: manners.fresh,
            parts,
            encoder,
            ring,
            causal: step.causal,
            pieces: plan.pieces,
            heads_here: plan.heads_here,
            tile_rows,
            keys: tile.keys,
            dot_lanes: tile.lanes,
            splits,
            split_keys: SPLIT_KEYS,
        });
        let result = self.register(step.out)?;
        let args = vec![
            floats(qkv),
            table,
            weight(&q_norm),
            weight(&k_norm),
            Arg::Places,
            words(keys_buffer),
            words(values_buffer),
            floats(if parts { self.buffer(Role::Parts(step.out.0))? } else { result }),
            floats(if parts { self.buffer(Role::Statistics(step.out.0))? } else { result }),
            qkv_stride,
            key_at,
            value_at,
            number(step.heads),
            number(step.kv_heads),
            number(slots),
            number(step.window.unwrap_or(0)),
            number(self.stride(step.out)?),
            Arg::F32(step.scale),
            Arg::F32(step.softcap.unwrap_or(0.0)),
            eps(&q_norm),
            offset(&q_norm),
            eps(&k_norm),
            offset(&k_norm),
        ];
        let cubes = (step.kv_heads * plan.pieces) as u32;
        let grid = [Extent::Fixed(cubes), Extent::Fixed(splits as u32), Extent::Tiles];
        out.push(Launch { kernel, args, grid });
        Ok(())
    }
}
