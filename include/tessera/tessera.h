// SPDX-License-Identifier: Apache-2.0
// The one include a program needs.
#pragma once

#include "tessera/base/error.h"
#include "tessera/launch/launch.h"
#include "tessera/mesh/mesh.h"
#include "tessera/module/autocast.h"
#include "tessera/module/build.h"
#include "tessera/module/check_finite.h"
#include "tessera/module/clip.h"
#include "tessera/module/distribute.h"
#include "tessera/module/ema.h"
#include "tessera/module/fused_optimizers.h"
#include "tessera/module/gather.h"
#include "tessera/module/grad_scaler.h"
#include "tessera/module/master_weights.h"
#include "tessera/module/plan.h"
#include "tessera/pipeline/schedule.h"
#include "tessera/pipeline/timeline.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"
#include "tessera/tensor/stages.h"
