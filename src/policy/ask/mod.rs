//! Questions about access: may they, who may, and what is open.

pub mod can_i;
pub mod routes;
pub mod search;
pub mod who_can;
